"""Motions of the camera made of stills: what is seen through a crop that moves over a picture.

AnimateDiff learns its eight camera LoRAs from clips made so (Guo et al. 2023, arXiv 2307.04725, section 4.3).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

CameraMotion = Literal["zoom-in", "zoom-out", "pan-left", "pan-right", "tilt-up", "tilt-down", "roll-cw", "roll-ccw"]
MOTIONS = get_args(CameraMotion)

FINER = 2
"""A crop is sampled at so many times its pixels each way, and averaged: nothing flickers in what is far away."""


class Way(NamedTuple):
    """Where a crop is in each frame, in an area of `extent` (width, height) that all of them together need.

    `places`: (frames, 2, 3), affine from the crop, (-1, -1, 1) at its left upper corner to (1, 1, 1), to x, y in the
    area. Lengths are pixels of the clip where the crop is largest; `closest` is the least side of a crop of that.
    """

    places: Tensor
    extent: tuple[float, float]
    closest: float


def camera_way(motion: CameraMotion, frames: int, size: tuple[int, int], reach: float) -> Way:
    """Return the way of a crop whose every frame lies in the area, however it turns; `frames` is at least 2.

    Args:
        size: (width, height) of the clip.
        reach: from the first frame to the last. A zoom is by the factor (1 + reach), the same from each frame to the
            next; pan and tilt go so many widths or heights; a roll turns by so many times 90 degrees. The names say
            what the camera does: rolled clockwise, it sees a picture that turns the other way.
    """
    times = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64)
    kind, _, to = motion.partition("-")
    times = -times if to in ("left", "up", "ccw", "out") else times
    still, one = torch.zeros_like(times), torch.ones_like(times)
    scale = (1 + reach) ** -(times + 0.5) if kind == "zoom" else one
    angle = times * reach * math.pi / 2 if kind == "roll" else still
    x, y = (times * reach * side if kind == name else still for name, side in zip(("pan", "tilt"), size))
    across, down = scale * size[0] / 2, scale * size[1] / 2
    cos, sin = angle.cos(), angle.sin()
    places = torch.stack([across * cos, -down * sin, x, across * sin, down * cos, y], 1).view(frames, 2, 3)
    found = corners(places).flatten(0, 1)
    least, most = found.amin(0), found.amax(0)
    places[:, :, 2] -= least
    width, height = (most - least).tolist()
    return Way(places, (width, height), scale.min().item())


def corners(places: Tensor) -> Tensor:
    """Return x, y of the four corners of each crop, (frames, 4, 2)."""
    crop = torch.tensor([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]], dtype=places.dtype)
    return (places @ crop).transpose(1, 2)


def area_of(picture: Tensor, way: Way) -> tuple[Tensor, float]:
    """Return the largest part at the middle of a picture that has the shape of a way's area, with the pixels that its
    closest crop needs; and how many times it had to be enlarged for that.

    Args:
        picture: (3, height, width).
    """
    (width, height), (_, h, w) = way.extent, picture.shape
    least = min(w / width, h / height)
    seen_w, seen_h = (max(1, round(least * side)) for side in way.extent)
    left, top = (w - seen_w) // 2, (h - seen_h) // 2
    seen = picture[None, :, top : top + seen_h, left : left + seen_w]
    wanted = [math.ceil(side / way.closest) for side in (height, width)]
    area = F.interpolate(seen, wanted, mode="bicubic", antialias=True, align_corners=False)
    return area[0].clamp(0, 1), 1 / (least * way.closest)


def seen_at(area: Tensor, way: Way, frame: int, size: tuple[int, int]) -> Tensor:
    """Return what the crop of a frame shows of an area, (3, height, width) of `size` (width, height), in 0 to 1."""
    width, height = way.extent
    place = way.places[frame] * torch.tensor([[2 / width], [2 / height]], dtype=torch.float64)
    place[:, 2] -= 1  # -1 to 1, as grid_sample counts
    grid = F.affine_grid(place[None].to(area), [1, 3, FINER * size[1], FINER * size[0]], align_corners=False)
    finer = F.grid_sample(area[None], grid, mode="bicubic", padding_mode="border", align_corners=False)
    return F.avg_pool2d(finer, FINER)[0].clamp(0, 1)


def moving_crop(picture: Tensor, motion: CameraMotion, frames: int, size: tuple[int, int], reach: float) -> Tensor:
    """Return a clip of a still, (frames, 3, height, width) of `size` (width, height), without a border anywhere.

    Args:
        picture: (3, height, width) of any size, in 0 to 1.
        frames, reach: see `camera_way`.
    """
    way = camera_way(motion, frames, size, reach)
    area, _ = area_of(picture, way)
    return torch.stack([seen_at(area, way, frame, size) for frame in range(frames)])
