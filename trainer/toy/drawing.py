"""Captioned pictures and clips that code draws: one large coloured shape on a coloured ground.

Lengths are fractions of the picture's shorter side, positions fractions of its height and width. Pictures are
float32 (n, 3, height, width) in [-1, 1], like everything that a training loop sees. All randomness comes from the
generator that the caller gives, so a seed names a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 220, 50),
    "orange": (245, 135, 25),
    "purple": (140, 50, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
RADII = (0.27, 0.40)


# Signed distances in units of the shape's radius, negative inside, y downwards. Near its edge each has slope one,
# which is what makes the anti-aliasing below one pixel wide.
def _circle(x, y):
    return (x.square() + y.square()).sqrt() - 1


def _square(x, y):
    return torch.maximum(x.abs(), y.abs()) - 0.88


def _triangle(x, y):
    return torch.maximum(y - 0.85, 0.75**0.5 * x.abs() - 0.5 * (y - 0.25) - 0.6)


def _ring(x, y):
    return (_circle(x, y) + 0.28).abs() - 0.28


def _cross(x, y):
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 1, y - 0.34), torch.maximum(x - 0.34, y - 1))


def _moon(x, y):
    return torch.maximum(_circle(x, y), -0.2 - _circle(x - 0.6, y))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "moon": _moon,
}


class Scene(NamedTuple):
    """The content of a caption: a shape, its colour, the ground."""

    colour: str
    shape: str
    ground: str

    @property
    def caption(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        ground_article = "an" if self.ground[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} on {ground_article} {self.ground} background"


def all_scenes() -> list[Scene]:
    """Return every scene that can be seen, 6 x 8 x 7 = 336: the shape never has the colour of its ground."""
    return [Scene(c, s, g) for c, s, g in product(COLOURS, SHAPES, COLOURS) if c != g]


def is_held_out(scene: Scene) -> bool:
    """Tell whether a scene is held out: one in eight, chosen so that every *pair* of words is still seen in
    training."""
    colours = list(COLOURS)
    place = colours.index(scene.colour) + list(SHAPES).index(scene.shape) + 3 * colours.index(scene.ground)
    return place % 8 == 0


def split_scenes() -> tuple[list[Scene], list[Scene]]:
    """Return the scenes that training sees and those that it does not, each in a fixed order."""
    scenes = all_scenes()
    return [s for s in scenes if not is_held_out(s)], [s for s in scenes if is_held_out(s)]


def random_places(count: int, generator: Generator, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return centres (count, 2) as (y, x) and radii (count,).

    Args:
        spread: 0 puts every shape in the middle at the mean of RADII; 1 takes all radii and most of the free room.
    """
    lowest, highest = RADII
    radius = (lowest + highest) / 2 + spread * (highest - lowest) * (torch.rand(count, generator=generator) - 0.5)
    room = spread * 0.85 * (0.5 - radius)
    return 0.5 + room[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1), radius


def draw(scenes: Sequence[Scene], centres: Tensor, radii: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures of the scenes, (n, 3, height, width) in [-1, 1]; `size` is (height, width) in pixels."""
    cover = coverage([scene.shape for scene in scenes], centres, radii, size)[:, None]
    colour, ground = (_colours([getattr(s, part) for s in scenes]) for part in ("colour", "ground"))
    return ground + cover * (colour - ground)


def coverage(shapes: Sequence[str], centres: Tensor, radii: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how much of each pixel its shape covers, (n, height, width) in [0, 1]."""
    y, x = pixel_grid(size)
    scale = radii[:, None, None] * min(size)
    y = (y - centres[:, 0, None, None] * size[0]) / scale
    x = (x - centres[:, 1, None, None] * size[1]) / scale
    distance = torch.empty(len(shapes), *size)
    for name, shape in SHAPES.items():
        chosen = [i for i, given in enumerate(shapes) if given == name]
        if chosen:
            distance[chosen] = shape(x[chosen], y[chosen])
    return (0.5 - distance * scale).clamp(0, 1)


def pixel_grid(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return vertical and horizontal positions of the pixels' centres, in pixels, (height, 1) and (1, width)."""
    return torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1])[None] + 0.5


def random_pictures(
    scenes: Sequence[Scene], count: int, size: tuple[int, int], generator: Generator, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return pictures of scenes drawn by lot, (count, 3, height, width), and which scene each one shows, (count,)."""
    chosen = torch.randint(len(scenes), (count,), generator=generator)
    centres, radii = random_places(count, generator, spread)
    return draw([scenes[i] for i in chosen.tolist()], centres, radii, size), chosen


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Return pictures in [-1, 1], (n, 3, height, width), as frames of a file, uint8 (n, height, width, 3)."""
    levels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())


def _colours(names: Sequence[str]) -> Tensor:
    return torch.tensor([COLOURS[name] for name in names])[:, :, None, None] / 127.5 - 1


@dataclass(frozen=True)
class Motion:
    """A way to move: what a caption calls it, and the path of the shape.

    `path` turns phases in cycles, (frames,), into offsets from the middle, y and x, and radii, each (frames,).
    """

    words: str
    path: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _swing(phase):
    return torch.zeros_like(phase), 0.2 * torch.sin(math.tau * phase), torch.full_like(phase, 0.28)


def _grow(phase):
    still = torch.zeros_like(phase)
    return still, still, 0.3 - 0.1 * torch.cos(math.tau * phase)


def _orbit(phase):
    angle = math.tau * phase
    return 0.18 * torch.sin(angle), 0.18 * torch.cos(angle), torch.full_like(phase, 0.28)


MOTIONS = {
    "swing": Motion("swinging from side to side", _swing),
    "grow": Motion("growing and shrinking", _grow),
    "orbit": Motion("going round in a circle", _orbit),
}


def draw_clip(
    scene: Scene,
    motion: str,
    frames: int,
    size: tuple[int, int],
    period: float = 16.0,
) -> tuple[np.ndarray, str]:
    """Return one clip of one motion, from the start of its cycle, and its caption.

    Args:
        motion: a key of MOTIONS.
        frames: how many frames the clip has.
        size: (height, width) in pixels.
        period: frames that one cycle of the motion takes.

    Returns:
        uint8 frames, (frames, height, width, 3), and the scene's caption followed by the words for the motion.
    """
    if motion not in MOTIONS:
        raise ValueError(f"there is no motion {motion!r}; choose one of {', '.join(MOTIONS)}")
    y, x, radius = MOTIONS[motion].path(torch.arange(frames) / period)
    centres = 0.5 + torch.stack([y, x], dim=1)
    return to_bytes(draw([scene] * frames, centres, radius, size)), f"{scene.caption}, {MOTIONS[motion].words}"
