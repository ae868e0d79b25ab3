"""Lumiere's space-time U-Net: the frame rate is halved where the picture shrinks, and doubled where it grows again.

A clip of any length works: halving keeps `ceil(frames / 2)` frames, doubling cuts off what is too much.
"""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_rows(rows: Tensor, frames: int, finer: int) -> Tensor:
    """Return every frame of a clip twice, cut to the `finer` number: `(clips * frames, ...)` to `(clips * finer,
    ...)`."""
    return rows.unflatten(0, (-1, frames)).repeat_interleave(2, dim=1)[:, :finer].flatten(0, 1)


def pool_rows(rows: Tensor, frames: int, merged: int) -> Tensor:
    """Return the mean of each `merged` neighbouring rows of a clip; the last of a clip may be of fewer."""
    groups = rows.unflatten(0, (-1, frames)).split(merged, dim=1)
    return torch.stack([group.mean(dim=1) for group in groups], dim=1).flatten(0, 1)
