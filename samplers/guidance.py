"""What HiGen's guidance is asked for: a number, a curve or a clip, which become numbers once a clip's length is known.

Each has a method `for_frames`. What is asked of motion returns factors of frames `(frames,)` or of transitions
`(frames - 1,)`, what is asked of appearance similarities `(frames, frames)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..networks.guidance import even_positions, similarity_of
from ..networks.keyframes import Keyframes, value_at
from .factors import resampled_curve, resampled_similarity


class Asking(Protocol):
    """What one dial is asked for."""

    def for_frames(self, frames: int) -> Tensor: ...


@dataclass(frozen=True)
class DrawnMotion:
    """Motion factors of frames: linear between keyframes, constant before the first and after the last."""

    keyframes: Keyframes

    def for_frames(self, frames: int) -> Tensor:
        return drawn(self.keyframes, frames)


@dataclass(frozen=True, eq=False)
class MeasuredMotion:
    """Motion factors of a clip's transitions, `(n,)`, times a scale; a clip of another length gets the same curve."""

    factors: Tensor
    scale: float = 1.0

    def for_frames(self, frames: int) -> Tensor:
        return resampled_curve(self.factors.float() * self.scale, max(frames - 1, 1))


@dataclass(frozen=True)
class EvenLook:
    """A look that changes evenly by an appearance factor from the first frame to the last: the paper's Eq. 4."""

    factor: float

    def for_frames(self, frames: int) -> Tensor:
        return similarity_of(even_positions(torch.tensor(self.factor), frames))


@dataclass(frozen=True)
class DrawnLook:
    """Places of frames on the way from one look to another, by keyframes as in `DrawnMotion`."""

    keyframes: Keyframes

    def for_frames(self, frames: int) -> Tensor:
        return similarity_of(drawn(self.keyframes, frames))


@dataclass(frozen=True, eq=False)
class MeasuredLook:
    """Similarities of a clip, `(n, n)`, whose distances 1 - R are scaled; another length gets them interpolated."""

    similarity: Tensor
    scale: float = 1.0

    def for_frames(self, frames: int) -> Tensor:
        similarity = resampled_similarity(self.similarity.float(), frames)
        return (1 - self.scale * (1 - similarity)).clamp(-1, 1)


def drawn(keyframes: Keyframes, frames: int) -> Tensor:
    """Return the value of every frame, `(frames,)`."""
    return torch.tensor([value_at(keyframes, frame) for frame in range(frames)])
