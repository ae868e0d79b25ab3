"""Noising and the training loss, as functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ..networks.clip import Clip
from .batches import TIMESTEPS, Batch, Plan


def signal_shares() -> Tensor:
    """How much of the squared signal is left at each timestep, (1000,), float32: Stable Diffusion's `scaled_linear`.

    Source: Rombach et al. 2022, code; betas are linear in their square root, from 0.00085 to 0.012.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS) ** 2
    return (1 - betas).cumprod(0)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """z_t = sqrt(ᾱ_t) z_0 + sqrt(1 - ᾱ_t) ε, row by row."""
    share = signal_shares().to(latents.device)[timesteps].view(-1, 1, 1, 1)
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def noisy_rows(batch: Batch, first_frame: Literal["noisy", "clean"]) -> Tensor:
    """What the network sees: every frame noised, or all but the first of each clip (LAMP, Wu et al. 2023)."""
    noisy = add_noise(batch.latents, batch.noise, batch.timesteps)
    if first_frame == "clean":
        noisy = noisy.clone()
        noisy[:: batch.frames] = batch.latents[:: batch.frames]
    return noisy


def noise_loss(predicted: Tensor, noise: Tensor, frames: int, first_frame: Literal["noisy", "clean"]) -> Tensor:
    """Mean squared error of the noise of each clip, (clips,), in float32.

    Args:
        predicted, noise: rows `(clips * frames, 4, height, width)`.
        first_frame: "clean" leaves the first frame out: it was given, there is nothing to predict.
    """
    errors = (predicted.float() - noise.float()).square().unflatten(0, (-1, frames))
    return errors[:, 1 if first_frame == "clean" else 0 :].flatten(1).mean(1)


def velocity_weight(timesteps: Tensor) -> Tensor:
    """(SNR + 1) / SNR = 1 / ᾱ, up to 20: makes the squared error of the noise that of v.

    Without it the noisy steps, where layout and motion are decided, hardly count.
    Source: Salimans and Ho 2022 (arXiv 2202.00512), appendix D.
    """
    return (1 / signal_shares().to(timesteps.device)[timesteps]).clamp(max=20)


def batch_loss(model: nn.Module, batch: Batch, plan: Plan) -> Tensor:
    """The loss of each clip of a batch, (clips,)."""
    sample = noisy_rows(batch, plan.first_frame)
    predicted = model(sample, batch.timesteps, batch.text, Clip.of(batch.frames))
    loss = noise_loss(predicted, batch.noise, batch.frames, plan.first_frame)
    return loss if plan.weighting == "uniform" else loss * velocity_weight(batch.timesteps[:: batch.frames])
