"""What the clips of a batch are asked to be, by parts of an inflation that can be asked: HiGen's
and the condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Absent = Literal["nothing", "zero"]
"""What a part does where nobody asks: it adds nothing, and nothing to a clip of one frame, or it takes zero for given,
as a network does that never ran without."""


class Given(NamedTuple):
    """A value for each clip of a batch, or one for all of them.

    `weight`: how much of it counts for each, (clips,): 1 all of it, 0 as if it had not been given; None: 1.
    """

    value: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Asked:
    """Values for the whole clips of a batch, whose windows take their own frames of them.

    `prior`: scaled latents of a still, (clips, 4, height, width). `frames`: of a whole clip, 0 where the rows of the
    batch are whole clips. `motion`: factors of its transitions or of its frames, (clips, frames - 1 or frames).
    `similarity`: of each frame to each other, (clips, frames, frames). `condition`: known pixels C and where they are,
    M, of all frames, (clips, frames, 5, height, width), see `samplers.conditions`.
    """

    prior: Given | None = None
    motion: Given | None = None
    similarity: Given | None = None
    condition: Given | None = None
    frames: int = 0


NOTHING = Asked()


def taken(given: Given | None, frames: int, absent: Absent, zero: float, shape: tuple[int, ...]) -> Given | None:
    """Return what a part takes of what it is given for clips of so many frames, None where that is nothing.

    Where it never goes without, clips that were given nothing have a value full of `zero`, of this shape.
    """
    if absent == "nothing":
        return None if frames == 1 else given
    if given is None:
        return Given(torch.full(shape, zero))
    return given if given.weight is None else Given(zero + over(given.weight, given.value) * (given.value - zero))


def over(weight: Tensor, value: Tensor) -> Tensor:
    """Return a weight of each clip in the shape that multiplies `value`, (clips, …)."""
    return weight.to(value).view(-1, *[1] * (value.ndim - 1))
