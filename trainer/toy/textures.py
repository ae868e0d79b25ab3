"""Rich pictures that code draws, with the statistics of photographs: what the autoencoder is trained on.

Dead leaves (shapes of every size that hide one another) have the edges and the spectrum of natural pictures, which
is why autoencoders trained on them also work on real footage. The leaves carry gradients, noise and stripes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .drawing import SHAPES, pixel_grid


def rich_pictures(count: int, size: tuple[int, int], generator: Generator, leaves: int = 14) -> Tensor:
    """Return textured pictures, (count, 3, height, width) in [-1, 1]; `size` is (height, width) in pixels."""
    picture = _texture(count, size, generator)
    for number in range(leaves):
        picture = torch.lerp(picture, _texture(count, size, generator), _leaf(count, size, number, generator))
    blurred = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(picture, blurred, _uniform(count, generator, 0, 1)).clamp(-1, 1)


def _uniform(count: int, generator: Generator, lowest: float, highest: float) -> Tensor:
    return lowest + (highest - lowest) * torch.rand(count, 1, 1, 1, generator=generator)


def _leaf(count: int, size: tuple[int, int], number: int, generator: Generator) -> Tensor:
    """Return masks of one shape each, (count, 1, h, w): rotated, stretched, of a size from a few pixels to half a
    picture."""
    shape = list(SHAPES.values())[number % len(SHAPES)]
    y, x = (p - s * _uniform(count, generator, 0, 1) for p, s in zip(pixel_grid(size), size))
    radius = min(size) * torch.exp(_uniform(count, generator, math.log(0.04), math.log(0.5)))
    angle, stretch = _uniform(count, generator, 0, math.tau), _uniform(count, generator, 0.4, 1)
    along = (x * angle.cos() + y * angle.sin()) / radius
    across = (y * angle.cos() - x * angle.sin()) / (radius * stretch)
    return (0.5 - shape(along, across) * radius * stretch).clamp(0, 1)


def _texture(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Return a colour with a gradient, stripes and noise on it, each of random strength."""
    colour = 2 * torch.rand(count, 3, 1, 1, generator=generator) - 1
    greyness = _uniform(count, generator, 0, 1)
    colour = torch.lerp(colour, colour.mean(1, keepdim=True), greyness)
    stripes = _waves(count, size, generator, math.log(0.03), math.log(0.3))
    gradient = _waves(count, size, generator, math.log(1), math.log(8))
    detail = (
        gradient + _strength(count, generator) * stripes + _strength(count, generator) * _noise(count, size, generator)
    )
    tint = 0.3 * torch.randn(count, 3, 1, 1, generator=generator) * greyness.sub(1).abs() + 0.35
    return (colour + tint * detail).clamp(-1, 1)


def _strength(count: int, generator: Generator) -> Tensor:
    """Draw numbers near zero, sometimes near one: flat areas are as common as busy ones."""
    return _uniform(count, generator, 0, 1) ** 3


def _waves(count: int, size: tuple[int, int], generator: Generator, lowest: float, highest: float) -> Tensor:
    """Return sine waves in a random direction, (count, 1, h, w); log of the wavelength between the two, in shorter
    sides."""
    y, x = pixel_grid(size)
    angle, phase = (_uniform(count, generator, 0, math.tau) for _ in range(2))
    wavelength = min(size) * torch.exp(_uniform(count, generator, lowest, highest))
    return torch.sin(math.tau * (x * angle.cos() + y * angle.sin()) / wavelength + phase)


def _noise(count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """Noise in octaves whose strength falls with frequency, like the spectrum of photographs; (count, 1, h, w)."""
    total = torch.zeros(count, 1, *size)
    for cells in (4, 8, 16, 32):
        coarse = torch.randn(count, 1, cells, cells, generator=generator)
        total += F.interpolate(coarse, size, mode="bilinear") * (4 / cells) ** 0.7
    return total
