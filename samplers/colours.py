"""Colours of a made clip, matched to those of the frames that were given: clips drift away from their first frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .conditions import KnownPixels, nearest_known

LEAST_SPREAD = 1e-3
"""Standard deviation below which a picture is taken for one flat colour, whose contrast cannot be matched."""


def colours_matched(clip: Tensor, given: KnownPixels, strength: float = 1.0) -> Tensor:
    """Return a clip (frames, height, width, 3) whose frames have mean and contrast of the nearest given frame.

    Mean and standard deviation of each colour channel are moved, over the pixels that are given in both where there
    are any, else over the whole frame (Reinhard et al. 2001, "Color transfer between images", in RGB).

    Args:
        strength: 0 leaves the clip as it is, 1 matches it wholly.

    Raises:
        ValueError: no pixel is given whole.
    """
    if strength == 0:
        return clip
    frames, known = given.frames.to(clip), given.known.to(clip.device) >= 1
    if not known.any():
        raise ValueError(
            "Colours are matched to pixels that are given whole, and there are none: set match_colours to 0."
        )
    nearest = nearest_known(replace(given, known=known.float()))
    pairs = zip(clip, frames, known, frames[nearest], known[nearest])
    matched = torch.stack([of_frame(*pair) for pair in pairs])
    return torch.lerp(clip, matched.clamp(0, 1), strength)


def of_frame(made: Tensor, own: Tensor, known: Tensor, nearest: Tensor, nearest_known: Tensor) -> Tensor:
    """Return one frame, (height, width, 3), with the colours of its own known pixels, or else of the nearest frame's.

    A frame given in part is compared where it is known: the rest may hold anything else.
    """
    if known.any():
        return moved(made, made[known], own[known])
    where = nearest_known if not nearest_known.all() else torch.ones_like(nearest_known)
    return moved(made, made[where], nearest[where])


def moved(picture: Tensor, pixels: Tensor, wanted: Tensor) -> Tensor:
    """Return a picture under the gain and offset that give `pixels`, (n, 3), mean and deviation of `wanted`."""
    spread, aim = pixels.std(0, correction=0), wanted.std(0, correction=0)
    gain = torch.where((spread > LEAST_SPREAD) & (aim > LEAST_SPREAD), aim / spread.clamp(min=LEAST_SPREAD), 1.0)
    return (picture - pixels.mean(0)) * gain + wanted.mean(0)
