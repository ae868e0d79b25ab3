"""Masks of clips, 1 where pixels are to be made: for as many frames, grown, filled, with soft edges."""

from __future__ import annotations

import torch
from kornia.filters import box_blur
from kornia.morphology import dilation, erosion
from torch import Tensor


def for_frames(mask: Tensor, frames: int) -> Tensor:
    """Return a mask for each frame, (frames, height, width), in float32.

    Args:
        mask: (height, width) or (1, height, width), one for all; (frames, height, width), one each; another number of
            them is spread over the frames, each frame taking the nearest.

    Raises:
        ValueError: it has other axes, or there is none.
    """
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or not len(mask):
        raise ValueError(f"The mask is {tuple(mask.shape)}; it must be (height, width) or (frames, height, width).")
    middles = (torch.arange(frames) + 0.5) * len(mask) / frames
    return mask.float()[middles.long()]


def grown(mask: Tensor, pixels: int) -> Tensor:
    """Return a mask (frames, height, width) that reaches so many pixels farther, or less far where negative.

    Every other step is along rows and columns alone, so that corners grow into octagons, near to circles.
    """
    square, cross = torch.ones(3, 3), torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])
    step, out = dilation if pixels > 0 else erosion, mask[:, None].float()
    for number in range(abs(pixels)):
        out = step(out, (square if number % 2 else cross).to(out))
    return out[:, 0].to(mask)


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """Return a mask (frames, height, width) that stays as it is inside and falls to 0 over so many pixels outside."""
    near, blur = pixels // 2, -(-pixels // 2)
    out = mask[:, None].float()
    for _ in range(near):
        out = dilation(out, torch.ones(3, 3).to(out))
    if blur:
        out = box_blur(out, (2 * blur + 1, 2 * blur + 1), border_type="replicate", separable=True)
    return torch.maximum(mask, out[:, 0].clamp(0, 1).to(mask))


def filled(mask: Tensor) -> Tensor:
    """Return a mask (frames, height, width) without holes: what no way of pixels that are 0 joins to the border
    becomes 1.

    Pixels above 0 are walls. kornia has no such function; this one goes along whole rows and columns at a time.
    """
    open_ = mask <= 0
    reached = open_.clone()
    reached[:, 1:-1, 1:-1] = False
    while True:
        before = reached
        for axis in (1, 2):
            back = along(reached.flip(axis), open_.flip(axis), axis).flip(axis)
            reached = reached | along(reached, open_, axis) | back
        if torch.equal(reached, before):
            return torch.where(open_ & ~reached, torch.ones_like(mask), mask)


def along(reached: Tensor, open_: Tensor, axis: int) -> Tensor:
    """Return which open pixels have a reached one before them on their row or column, and no wall in between."""
    shape = [1, 1, 1]
    shape[axis] = -1
    number = torch.arange(reached.shape[axis], device=reached.device).view(shape)
    last_reached = torch.where(reached, number, -1).cummax(axis).values
    last_wall = torch.where(open_, -1, number).cummax(axis).values
    return open_ & (last_reached > last_wall)
