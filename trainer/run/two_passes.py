"""HiGen's two passes as previews show them: a still by the image model, and clips of it at several motion factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...networks.asked import Asked, Given
from ...samplers.guidance import EvenLook
from .sample import Model, Sampling, sample_clip, starting_noise


def asked_for(prior: Tensor | None, motion: float | None, appearance: float | None, frames: int) -> Asked:
    """Return what a clip of so many frames is asked to be by numbers, the same motion in all its transitions.

    Args:
        prior: latents of a still, (4, height, width).
        motion: factor, 0 to 2000; 300 to 600 in the paper.
        appearance: factor, 0 to 1.
    """
    return Asked(
        prior=None if prior is None else Given(prior[None]),
        motion=None if motion is None else Given(torch.full((1, frames), float(motion))),
        similarity=None if appearance is None else Given(EvenLook(appearance).for_frames(frames)[None]),
    )


def sample_still(
    image_model: Model, text: Tensor, no_caption: Tensor, cells: tuple[int, int], seed: int, how: Sampling
) -> Tensor:
    """Return the latents of a still, (4, height, width), by the image model: the first pass."""
    noise = starting_noise(seed, 1, cells).to(text.device)
    return sample_clip(image_model, text, no_caption, noise, how, progress=False)[0]


def sample_passes(
    image_model: Model,
    model: Callable[..., Tensor],
    text: Tensor,
    no_caption: Tensor,
    noise: Tensor,
    how: Sampling,
    asked: Sequence[Asked],
    seed: int,
) -> list[Tensor]:
    """Return the latents of a still, (1, 4, height, width), and of a clip of it for each of `asked`, whose prior is
    the still."""
    height, width = noise.shape[-2:]
    still = sample_still(image_model, text.to(noise), no_caption.to(noise), (width, height), seed, how)
    priors = [replace(one, prior=Given(still[None])) for one in asked]
    clips = [sample_clip(partial(model, asked=one), text, no_caption, noise, how, progress=False) for one in priors]
    return [still[None], *clips]
