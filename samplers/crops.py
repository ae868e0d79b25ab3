"""One box around all that is to be made in a clip, cut out to work on it larger, and put back.

The box is the same in all frames, so that nothing jitters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .conditions import CELL, KnownPixels, composited, sized
from .masks import for_frames


class Box(NamedTuple):
    """A rectangle in pixels, from its left upper corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Crop:
    """Where a crop was taken: of `frames` (n, height, width, 3), at `box`, and then resized to `size`, width and
    height."""

    frames: Tensor
    box: Box
    size: tuple[int, int]


def box_around(mask: Tensor, margin: int, aspect: float | None = None) -> Box:
    """Return the box around all pixels of a mask (frames, height, width) that are above 0, `margin` pixels wider on
    each side, as far as the picture goes.

    Args:
        aspect: width over height that the box grows to, as far as the picture goes; None: its sides become multiples of
            a latent's cell, but for one that is as long as the picture's.

    Raises:
        ValueError: the mask is empty.
    """
    height, width = mask.shape[1:]
    rows, columns = (mask.amax(dims).nonzero()[:, 0].tolist() for dims in ((0, 2), (0, 1)))
    if not rows:
        raise ValueError("The mask is empty: paint white what is to be made, or leave the crop out.")
    tall, wide = rows[-1] + 1 - rows[0] + 2 * margin, columns[-1] + 1 - columns[0] + 2 * margin
    if aspect is None:
        tall, wide = (-(-side // CELL) * CELL for side in (tall, wide))
    else:
        tall, wide = max(tall, round(wide / aspect)), max(wide, round(tall * aspect))
    left, wide = within((columns[0] + columns[-1] + 1) / 2, wide, width)
    top, tall = within((rows[0] + rows[-1] + 1) / 2, tall, height)
    return Box(left, top, wide, tall)


def within(middle: float, side: int, whole: int) -> tuple[int, int]:
    """Return start and length of a stretch around `middle`, moved and cut to lie in 0 to `whole`."""
    side = min(side, whole)
    return min(max(0, round(middle - side / 2)), whole - side), side


def cut(frames: Tensor, box: Box) -> Tensor:
    """Return the pixels of a box, of pictures (n, height, width, channels) or masks (n, height, width)."""
    return frames[:, box.top : box.top + box.height, box.left : box.left + box.width]


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures (n, height, width, channels) in 0 to 1 of another width and height, antialiased."""
    width, height = size
    if pictures.shape[1:3] == (height, width):
        return pictures
    out = F.interpolate(pictures.movedim(-1, 1).float(), (height, width), mode="bicubic", antialias=True)
    return out.clamp(0, 1).movedim(1, -1)


def stitched(clip: Tensor, crop: Crop, mask: Tensor | None = None, feather: int = 0) -> Tensor:
    """Return the whole frames, (frames, height, width, 3), with a clip in the place that its crop was taken from.

    Args:
        clip: (frames, height, width, 3), of the crop's size or padded to the right and below.
        mask: of what was made, in the crop's size, 1 where the clip is taken; None: all of it.
        feather: pixels of the whole frames over which the mask's edge fades, outside of it.

    Raises:
        ValueError: clip and crop have other numbers of frames, or the clip is smaller, or the mask has another size.
    """
    width, height = crop.size
    whole = crop.frames[..., :3].to(clip)
    if len(whole) not in (1, len(clip)) or clip.shape[1] < height or clip.shape[2] < width:
        raise ValueError(
            f"The clip is {sized(clip)}, and its crop was cut from {len(whole)} frames in {width} x {height}: wire the"
            " crop that this clip was made of."
        )
    if mask is not None and tuple(mask.shape[-2:]) != (height, width):
        raise ValueError(
            f"The mask is {mask.shape[-1]} x {mask.shape[-2]}, and the crop {width} x {height}: wire the mask of Video"
            " Inpaint / Cinemagraph, not that of the whole frames."
        )
    part = resized(clip[:, :height, :width, :3], (crop.box.width, crop.box.height))
    whole = whole.expand(len(clip), -1, -1, -1).clone()
    place = cut(whole, crop.box)
    made = torch.ones(part.shape[:3]) if mask is None else mask_in_box(mask, crop.box, len(clip))
    place.copy_(composited(part, KnownPixels.of(place.clone(), 1 - made.to(part)), feather))
    return whole


def mask_in_box(mask: Tensor, box: Box, frames: int) -> Tensor:
    """Return a mask for each frame in a box's size; pixels that were to be made in part of it stay so."""
    spread = for_frames(mask, frames)[..., None]
    return resized(spread, (box.width, box.height))[..., 0]
