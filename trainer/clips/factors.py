"""The motion and the appearance factors of a set of clips: what HiGen's dials can be taught by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...samplers.factors import Norm, appearance_factor, appearance_similarity, latent_features, motion_factors
from .batches import TrainingClip

log = logging.getLogger("stillmotion")

PERCENTILES = 5, 50, 95
LEAST_MOTION, LEAST_APPEARANCE = 1.5, 0.05
"""The least that the 95th percentile of motion must be of the 5th, and of appearance above it."""


class Factors(NamedTuple):
    """Of a clip: the mean motion factor of its transitions, and its appearance factor."""

    motion: float
    appearance: float


def factors_of(clip: TrainingClip, frames: int, norm: Norm = "l1") -> Factors:
    """Measure the first `frames` frames of a clip, as a training window that begins there."""
    latents = clip.latents[:frames]
    features = latent_features(latents) if clip.features is None else clip.features[:frames]
    motion = motion_factors(latents, norm).mean().item()
    return Factors(motion, appearance_factor(appearance_similarity(features)).item())


def spread(factors: Sequence[Factors]) -> dict[str, list[float]]:
    """Return the 5th, 50th and 95th percentile of either factor, by name."""
    shares = torch.tensor(PERCENTILES) / 100
    return {
        name: [round(value, 4) for value in torch.tensor(values).quantile(shares).tolist()]
        for name, values in zip(Factors._fields, zip(*factors))
    }


def told(ranges: dict[str, list[float]]) -> str:
    low, middle, high = ranges["motion"]
    least, half, most = ranges["appearance"]
    return (
        f"motion factor {low:.0f}, {middle:.0f}, {high:.0f} and appearance factor {least:.3f}, {half:.3f}, {most:.3f}"
        " (5th, 50th and 95th percentile)"
    )


def warn_of_spread(ranges: dict[str, list[float]]) -> None:
    """Warn of factors that hardly differ from clip to clip: nothing can be learnt from them."""
    (low, _, high), (least, _, most) = ranges["motion"], ranges["appearance"]
    warning = "The %s factor hardly differs from clip to clip, so that this set cannot teach it: add clips that %s."
    if high <= LEAST_MOTION * low:
        log.warning(warning, "motion", "move more and less")
    if most - least < LEAST_APPEARANCE:
        log.warning(warning, "appearance", "change their look more and less")
