"""Noising and the training loss, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ...networks.clip import Clip
from ...samplers.schedules import NoiseSchedule, alphas_cumprod
from ..clips.batches import Batch, Plan


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule = "scaled_linear") -> Tensor:
    """Return z_t = sqrt(ᾱ_t) z_0 + sqrt(1 - ᾱ_t) ε, row by row."""
    signal = alphas_cumprod(schedule).to(latents.device)[timesteps].view(-1, 1, 1, 1)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def noisy_rows(batch: Batch, plan: Plan) -> Tensor:
    """Return what the network sees: every frame noised, or all but the first of each clip.

    The latter is LAMP's way to image-to-video (Wu et al. 2023, arXiv 2310.10769).
    """
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps, plan.schedule)
    if plan.first_frame == "clean":
        noisy = noisy.clone()
        noisy[:: batch.frames] = batch.latents[:: batch.frames]
    return noisy


def noise_loss(predicted: Tensor, noise: Tensor, frames: int, first_frame: Literal["noisy", "clean"]) -> Tensor:
    """Return the mean squared error of the noise of each clip, (clips,), in float32.

    Args:
        predicted, noise: rows `(clips * frames, 4, height, width)`.
        first_frame: "clean" leaves the first frame out: it was given, there is nothing to predict.
    """
    errors = (predicted.float() - noise.float()).square().unflatten(0, (-1, frames))
    return errors[:, 1 if first_frame == "clean" else 0 :].flatten(1).mean(1)


def velocity_weight(timesteps: Tensor, schedule: NoiseSchedule = "scaled_linear") -> Tensor:
    """Return (SNR + 1) / SNR = 1 / ᾱ, up to 20: makes the squared error of the noise that of v.

    Without it the noisy steps, where layout and motion are decided, hardly count.
    Source: Salimans and Ho 2022 (arXiv 2202.00512), section 4: the weighting SNR + 1 of the error of x.
    """
    return (1 / alphas_cumprod(schedule).to(timesteps.device)[timesteps]).clamp(max=20)


def simple_loss(predicted: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Return the denoising loss of each clip of a batch, (clips,), for the prediction of its noise."""
    loss = noise_loss(predicted, batch.noise, batch.frames, plan.first_frame)
    if plan.weighting == "uniform":
        return loss
    return loss * velocity_weight(batch.timesteps[:: batch.frames], plan.schedule)


def batch_loss(network: Callable[..., Tensor], batch: Batch, plan: Plan) -> Tensor:
    """Return the denoising loss of each clip of a batch, (clips,)."""
    predicted = network(noisy_rows(batch, plan), batch.timesteps, batch.text, Clip.of(batch.frames))
    return simple_loss(predicted, batch, plan)
