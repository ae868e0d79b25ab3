"""A drawn clip that moves well, and what may be wrong with a clip: each fault made of it, to try measures on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator
from torch.nn import functional as F

from .drawing import coverage, to_bytes
from .textures import rich_pictures

SIZE = 160, 256
"""(height, width) in pixels."""


def moving_clip(generator: Generator, frames: int = 16) -> np.ndarray:
    """Draw two textured shapes that go round over a textured ground that stands still, once in 24 frames.

    Returns:
        uint8 (frames, height, width, 3).
    """
    ground, *skins = rich_pictures(3, SIZE, generator)
    phase, radii = math.tau * torch.arange(frames) / 24, torch.full((frames,), 0.22)
    clip = ground.expand(frames, -1, -1, -1)
    for skin, shape, turn in zip(skins, ("circle", "square"), (0.0, math.pi)):
        offsets = torch.stack([0.2 * torch.sin(phase + turn), 0.25 * torch.cos(phase + turn)], dim=1)
        moved = torch.cat([_shifted(skin, *offset.tolist()) for offset in offsets])
        clip = torch.lerp(clip, moved, coverage([shape] * frames, 0.5 + offsets, radii, SIZE)[:, None])
    return to_bytes(clip)


def _shifted(picture: torch.Tensor, down: float, across: float) -> torch.Tensor:
    """Move a picture (3, height, width) by shares of its sides, and mirror it where nothing comes from."""
    place = torch.tensor([[[1.0, 0, -2 * across], [0, 1, -2 * down]]])
    grid = F.affine_grid(place, [1, *picture.shape], align_corners=False)
    return F.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)


def _frozen(clip, generator):
    return np.repeat(clip[:1], len(clip), axis=0)


def _panned(clip, generator):
    """Move over the first frame, from its left to its right, as a camera would."""
    frames, height, width, _ = clip.shape
    still = torch.from_numpy(clip[:1]).permute(0, 3, 1, 2).float()
    wide = F.interpolate(still, (height, 3 * width // 2), mode="bicubic", antialias=True).clamp(0, 255).round().byte()
    starts = [round(number * (width // 2) / (frames - 1)) for number in range(frames)]
    return np.stack([wide[0, :, :, start : start + width].permute(1, 2, 0).numpy() for start in starts])


def _shuffled(clip, generator):
    return clip[torch.randperm(len(clip), generator=generator).numpy()]


def _flickering(clip, generator):
    levels = clip.astype(np.int16)
    levels[1::2] += 14
    return levels.clip(0, 255).astype(np.uint8)


def _cut(clip, generator):
    """Show another scene from the middle on."""
    half = len(clip) // 2
    return np.concatenate([clip[:half], moving_clip(generator, len(clip))[half:]])


def _stuttering(clip, generator):
    return clip[np.arange(len(clip)) // 2 * 2]


def _noise(clip, generator):
    return torch.randint(0, 256, clip.shape, generator=generator, dtype=torch.uint8).numpy()


FAULTS: dict[str, Callable[[np.ndarray, Generator], np.ndarray]] = {
    "frozen": _frozen,
    "panned still": _panned,
    "shuffled": _shuffled,
    "flickering": _flickering,
    "cut": _cut,
    "stuttering": _stuttering,
    "noise": _noise,
}
"""What makes a clip of that fault of a clip uint8 (frames, height, width, 3), of the same shape."""
