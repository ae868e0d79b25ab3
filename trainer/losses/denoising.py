"""Noising and the training loss, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ...networks.asked import NOTHING, Asked
from ...networks.clip import Clip
from ...samplers.schedules import alphas_cumprod
from ..clips.batches import Batch, Plan


def add_noise(latents: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """Return z_t = sqrt(ᾱ_t) z_0 + sqrt(1 - ᾱ_t) ε, row by row; `signal` is ᾱ_t of each row."""
    signal = signal.view(-1, 1, 1, 1)
    return signal.sqrt() * latents + (1 - signal).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, signal: Tensor) -> Tensor:
    """Return v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) z_0 of each row (Salimans and Ho 2022, arXiv 2202.00512, appendix D)."""
    signal = signal.view(-1, 1, 1, 1)
    return signal.sqrt() * noise - (1 - signal).sqrt() * latents


def signal_of(batch: Batch, plan: Plan) -> Tensor:
    """Return ᾱ_t of each row of a batch."""
    return alphas_cumprod(plan.schedule, plan.zero_snr).to(batch.timesteps.device)[batch.timesteps]


def target_of(batch: Batch, plan: Plan) -> Tensor:
    """Return what the network is to predict of each row: the noise, or the velocity."""
    if plan.prediction == "epsilon":
        return batch.noise
    return velocity(batch.latents, batch.noise, signal_of(batch, plan))


def noisy_rows(batch: Batch, plan: Plan) -> Tensor:
    """Return what the network sees: every frame noised, or all but the first of each clip; of pictures every one.

    The second is LAMP's way to image-to-video (Wu et al. 2023, arXiv 2310.10769).
    """
    noisy = add_noise(batch.latents, batch.noise, signal_of(batch, plan))
    if plan.first_frame == "clean" and batch.frames > 1:
        noisy = noisy.clone()
        noisy[:: batch.frames] = batch.latents[:: batch.frames]
    return noisy


def prediction_loss(predicted: Tensor, target: Tensor, frames: int, first_frame: Literal["noisy", "clean"]) -> Tensor:
    """Return the mean squared error of the prediction of each clip, (clips,), in float32.

    Args:
        predicted, target: rows `(clips * frames, 4, height, width)`.
        first_frame: "clean" leaves the first frame out: it was given, there is nothing to predict.
    """
    errors = (predicted.float() - target.float()).square().unflatten(0, (-1, frames))
    return errors[:, 1 if first_frame == "clean" else 0 :].flatten(1).mean(1)


def velocity_weight(signal: Tensor) -> Tensor:
    """Return (SNR + 1) / SNR = 1 / ᾱ, up to 20: makes the squared error of the noise that of v.

    Without it the noisy steps, where layout and motion are decided, hardly count.
    Source: Salimans and Ho 2022 (arXiv 2202.00512), section 4: the weighting SNR + 1 of the error of x.
    """
    return (1 / signal).clamp(max=20)


def simple_loss(predicted: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Return the denoising loss of each clip of a batch, (clips,): squared errors of what the network predicts.

    Those of the velocity have the weighting "velocity" as they are.
    """
    given = plan.first_frame if batch.frames > 1 else "noisy"
    return timestep_weighted(prediction_loss(predicted, target_of(batch, plan), batch.frames, given), batch, plan)


def timestep_weighted(loss: Tensor, batch: Batch, plan: Plan) -> Tensor:
    """Return squared errors of what the network predicts, one of each clip, with the plan's weight of its timestep."""
    if plan.weighting == "uniform" or plan.prediction == "v_prediction":
        return loss
    return loss * velocity_weight(signal_of(batch, plan)[:: batch.frames])


def batch_loss(network: Callable[..., Tensor], batch: Batch, plan: Plan, asked: Asked = NOTHING) -> Tensor:
    """Return the denoising loss of each clip of a batch, (clips,); `asked` is what it is asked to be."""
    predicted = network(noisy_rows(batch, plan), batch.timesteps, batch.text, Clip.of(batch.frames), asked)
    return simple_loss(predicted, batch, plan)
