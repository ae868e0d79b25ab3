"""Places on a noise schedule: noise levels, percent of it, and what two hosts mean by the strength of an edit."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012

NoiseSchedule = Literal["scaled_linear", "linear"]
"""Schedules of betas, in diffusers' names: linear in their square root, or in themselves."""

Prediction = Literal["epsilon", "v_prediction"]
"""What a U-Net predicts, in diffusers' names: the noise ε, or the velocity v = √ᾱ ε - √(1 - ᾱ) z."""

PURE_NOISE = 1e-6
"""Least signal that a ratio is formed with: where a flow begins there is none at all."""


def alphas_cumprod(schedule: NoiseSchedule = "scaled_linear", zero_snr: bool = False) -> Tensor:
    """Return ᾱ, how much of the squared signal is left at each timestep, (1000,), float32.

    Betas run from 0.00085 to 0.012: linear in their square root in Stable Diffusion (Rombach et al. 2022, code), in
    themselves in AnimateDiff (Guo et al. 2023, code) and, by its wording, in HARIVO. `zero_snr`: √ᾱ is shifted and
    scaled to end in 0, as Lin et al. 2024 (arXiv 2305.08891, algorithm 1) do.
    """
    if schedule == "scaled_linear":
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS) ** 2
    else:
        betas = torch.linspace(BETA_START, BETA_END, TIMESTEPS)
    products = (1 - betas).cumprod(0)
    if not zero_snr:
        return products
    signal = products.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()


def sigmas_of(alphas_cumprod: Tensor) -> Tensor:
    """Return noise over signal of every timestep: σ_t = √((1 - ᾱ_t) / ᾱ_t)."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def flow_to_sigma(time: float, noise_scale: float = 1.0) -> float:
    """Return noise over signal at a time of a rectified flow, whose samples are (1 - s) x + s ε: σ = s / (1 - s)."""
    return noise_scale * time / max(1 - time, PURE_NOISE)


def sigma_at(percent: float, sigmas: Tensor) -> float:
    """Return the noise level where a share of a discrete schedule has passed, between timesteps on a line in log σ.

    Args:
        percent: from 0, before its noisy end, to 1, after its clean one.
        sigmas: of all timesteps, rising.
    """
    if percent <= 0:
        return math.inf
    if percent >= 1:
        return 0.0
    time = (1 - percent) * (len(sigmas) - 1)
    low, high = sigmas[math.floor(time)].log(), sigmas[math.ceil(time)].log()
    return (low + (time - math.floor(time)) * (high - low)).exp().item()


def is_within(sigma: float, start: float, end: float) -> bool:
    """Tell whether a noise level lies in a range that is given as on the way down, both ends included."""
    return end <= sigma <= start


def cfg_at(sigma: float, early: float, late: float, switch: float) -> float:
    """Return the CFG scale: `early` while there is more noise than at `switch`, then `late`."""
    return early if sigma > switch else late


def comfyui_edit(steps: int, strength: float) -> tuple[int, float]:
    """Return ComfyUI's steps and denoise that run what diffusers runs with `steps` and `strength`.

    diffusers runs the last int(steps * strength) of a schedule of `steps`; ComfyUI runs `steps`, the last ones of a
    schedule of int(steps / denoise).
    """
    run = min(int(steps * strength), steps)
    if run == 0:
        return steps, 0.0  # ComfyUI returns the latent as it is; its steps must be at least 1
    return run, 1.0 if run == steps else run / (steps + 0.5)  # half a step more, lest rounding lose a whole one


def diffusers_edit(steps: int, denoise: float) -> tuple[int, float]:
    """Return diffusers' steps and strength that run what ComfyUI runs with `steps` and `denoise`."""
    if denoise <= 0:
        return steps, 0.0
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return total, 1.0 if total == steps else (steps + 0.5) / total
