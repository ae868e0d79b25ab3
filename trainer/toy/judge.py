"""Says what a picture by the toy shows, by comparing it with what the drawing code would have drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .drawing import COLOURS, SHAPES, Scene, coverage


def scene_in(picture: Tensor) -> Scene:
    """Return the nearest scene to a picture (3, height, width) in [-1, 1].

    The ground is the commonest colour of the border, the shape's colour the commonest other one, and the shape is
    the one that, drawn with the same area and centre, overlaps best with what is nearer to its colour than the ground.
    """
    names = list(COLOURS)
    palette = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    distances = (picture.permute(1, 2, 0)[:, :, None] - palette).square().sum(-1)
    nearest = distances.argmin(-1)
    ground = _commonest(_border(nearest))
    others = nearest[nearest != ground]
    colour = _commonest(others) if len(others) else (ground + 1) % len(names)
    return Scene(names[colour], shape_of(distances[..., colour] < distances[..., ground]), names[ground])


def _border(numbers: Tensor) -> Tensor:
    edges = numbers[:2], numbers[-2:], numbers[:, :2], numbers[:, -2:]
    return torch.cat([edge.flatten() for edge in edges])


def _commonest(numbers: Tensor) -> int:
    return int(torch.bincount(numbers).argmax())


def shape_of(mask: Tensor) -> str:
    """Return the name of the shape that overlaps best with a mask (height, width): intersection over union."""
    mask = mask.float()
    return max(SHAPES, key=lambda shape: _overlap(mask, _template(shape, mask)))


def _template(shape: str, mask: Tensor) -> Tensor:
    """Return the shape drawn with the mask's area and centre of mass, in the mask's size."""
    area, off_centre = _area_and_centre(shape)
    radius = (mask.mean() / area).sqrt().clamp(0.05, 1)
    return coverage([shape], (_centre(mask) - off_centre * radius)[None], radius[None], tuple(mask.shape))[0]


@cache
def _area_and_centre(shape: str) -> tuple[Tensor, Tensor]:
    """Return the area of a shape with radius one, and how far its centre of mass lies from its middle (y, x)."""
    drawn = coverage([shape], torch.tensor([[0.5, 0.5]]), torch.tensor([0.25]), (128, 128))[0]
    return drawn.mean() / 0.25**2, (_centre(drawn) - 0.5) / 0.25


def _centre(mask: Tensor) -> Tensor:
    y, x = ((torch.arange(n) + 0.5) / n for n in mask.shape)
    return torch.stack([(mask.sum(1) * y).sum(), (mask.sum(0) * x).sum()]) / mask.sum().clamp(min=1e-6)


def _overlap(a: Tensor, b: Tensor) -> float:
    return (torch.minimum(a, b).sum() / torch.maximum(a, b).sum().clamp(min=1e-6)).item()


def accuracy(pictures: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Return share of pictures (n, 3, h, w) that show the colour, the shape and the ground of their scene."""
    found = [scene_in(picture) for picture in pictures]
    return {
        part: sum(getattr(f, part) == getattr(s, part) for f, s in zip(found, scenes)) / len(scenes)
        for part in Scene._fields
    }
