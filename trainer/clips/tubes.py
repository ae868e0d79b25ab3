"""Masks that training draws, 1 where pixels are to be made: tubes through a clip, and borders around it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

SIDE = 0.2, 0.7
"""Least and largest side of a rectangle, of the clip's."""

THICK = 0.05, 0.15
"""Least and largest radius of a brush, of the clip's shorter side."""

CORNERS = 6
"""Most corners of a stroke."""

BORDER = 0.1, 0.4
"""Least and largest part of a side that is outside of an outpainted clip; of two sides that face each other half."""


def between(bounds: tuple[float, float], random: Generator, count: int = 1) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=random)


def tube(frames: int, size: tuple[int, int], random: Generator, moving: bool = True) -> Tensor:
    """Draw a rectangle or a brush stroke, (frames, height, width), that drifts through a clip or stays where it is.

    Args:
        size: (height, width) in pixels.
    """
    is_stroke = torch.rand((), generator=random) < 0.5
    inside = stroke(random) if is_stroke else rectangle(random)
    drift = between((-0.3, 0.3), random, 2) if moving else torch.zeros(2)
    height, width = size
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    times = torch.linspace(-0.5, 0.5, frames)
    return torch.stack([inside(y - drift[0] * t, x - drift[1] * t) for t in times]).float()


def rectangle(random: Generator):
    """Return a function that tells of places y, x in 0 to 1 whether they are in a rectangle that is drawn here."""
    half = between(SIDE, random, 2) / 2
    middle = half + (1 - 2 * half) * torch.rand(2, generator=random)
    return lambda y, x: ((y - middle[0]).abs() <= half[0]) & ((x - middle[1]).abs() <= half[1])


def stroke(random: Generator):
    """Return a function that tells whether places are in the stroke of a brush that is drawn here."""
    count = int(torch.randint(2, CORNERS + 1, (), generator=random))
    corners, radius = between((0.1, 0.9), random, 2 * count).view(-1, 2), between(THICK, random)
    return lambda y, x: torch.stack([distance(y, x, *ends) for ends in zip(corners, corners[1:])]).amin(0) <= radius


def distance(y: Tensor, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return how far places are from a line between two points."""
    way = end - start
    along = ((y - start[0]) * way[0] + (x - start[1]) * way[1]) / way.square().sum().clamp(min=1e-6)
    along = along.clamp(0, 1)
    return ((y - start[0] - along * way[0]).square() + (x - start[1] - along * way[1]).square()).sqrt()


def border(frames: int, size: tuple[int, int], random: Generator) -> Tensor:
    """Draw what lies around an outpainted clip, (frames, height, width): on one to four sides, the same in all."""
    chosen = torch.rand(4, generator=random) < 0.5
    chosen[torch.randint(4, (), generator=random)] = True
    top, bottom, left, right = (between(BORDER, random, 4) * chosen / 2).tolist()
    double = lambda one, other: one if other else 2 * one  # noqa: E731
    top, bottom, left, right = double(top, bottom), double(bottom, top), double(left, right), double(right, left)
    mask, (height, width) = torch.ones(frames, *size), size
    mask[:, round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)] = 0
    return mask
