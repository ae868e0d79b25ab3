"""HiGen's guidance: how far each frame is from the next, and how like each other all are, in the time embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .asked import Absent, Given, over, taken
from .frame_attention import zero_init

Order = Literal["mlp_then_interp", "sin_then_interp"]
"""When numbers of F - 1 transitions become rows of F frames: after the MLP, as in the paper, or before it, as in the
released network. It is the same where all are alike."""

LARGEST_FACTOR = 4000.0


def sinusoid(numbers: Tensor, channels: int) -> Tensor:
    """Return the embedding of numbers as of a U-Net's timesteps: [cos | sin], frequencies 10000^(-i / half).

    Shape: any, `(…)` to `(…, channels)`, float32.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=numbers.device) * (-math.log(10000.0) / half))
    angles = numbers.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def for_each_frame(rows: Tensor, frames: int) -> Tensor:
    """Interpolate rows of transitions `(clips, F - 1, channels)` to rows of frames, by the half-pixel rule; rows of
    frames stay."""
    if rows.shape[1] == frames:
        return rows
    return F.interpolate(rows.mT, frames, mode="linear", align_corners=False).mT


def similarity_of(positions: Tensor) -> Tensor:
    """Return R_ij = 1 - |p_i - p_j|, how like each other frames are that lie at such places on the way of a clip from
    one look to another.

    With places at even distances from 0 to γ_a it is the paper's Eq. 4, R_ij = 1 - γ_a |i - j| / (F - 1).

    Args:
        positions: `(…, frames)`, 0 to 1.
    """
    return 1 - (positions[..., :, None] - positions[..., None, :]).abs()


def even_positions(factor: Tensor, frames: int) -> Tensor:
    """Return the places p_f = γ_a f / (F - 1) of an even change by an appearance factor `(…)`, `(…, frames)`."""
    return factor[..., None] * torch.linspace(0, 1, frames, device=factor.device)


def resampled_columns(rows: Tensor, columns: int) -> Tensor:
    """Interpolate the columns of rows `(clips, frames, n)`, the first and the last staying in place."""
    if rows.shape[-1] == columns:
        return rows
    return F.interpolate(rows, columns, mode="linear", align_corners=True)


class Embedding(nn.Module):
    """Linear, SiLU, and a linear layer that is zero at the start, so that guidance changes nothing before training."""

    def __init__(self, given: int, channels: int, absent: Absent, ops=nn):
        super().__init__()
        self.absent: Absent = absent
        self.first = ops.Linear(given, channels)
        self.last = zero_init(ops.Linear(channels, channels))

    def embedded(self, rows: Tensor) -> Tensor:
        return self.last(F.silu(self.first(rows)))

    def weighted(self, rows: Tensor, weight: Tensor | None) -> Tensor:
        """Return rows of clips by how much was asked for; where nothing asks for nothing, all of them."""
        return rows if weight is None or self.absent == "zero" else rows * over(weight, rows)


class MotionEmbedding(Embedding):
    """r^m = Interpolate(MLP(Sin(round(γ)))), or MLP(Interpolate(Sin(round(γ)))), for every frame.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), section 3.3, and its released network (`msim_embedding`).

    Args:
        width: channels of the U-Net's finest level, those of its timesteps' sinusoid too.
        channels: of the time embedding.
    """

    def __init__(self, width: int, channels: int, order: Order, absent: Absent, ops=nn):
        super().__init__(width, channels, absent, ops)
        self.width, self.order = width, order

    def forward(self, given: Given | None, frames: int, indices: Sequence[int], like: Tensor) -> Tensor | None:
        """Return what is added to the time embeddings of the frames `indices`, `(clips or 1, len(indices), channels)`.

        Args:
            given: factors of all `frames` of the clips, or of their transitions.
            like: a tensor of the device and type that the network computes on.

        Raises:
            ValueError: there are factors of another number of frames.
        """
        given = taken(given, frames, self.absent, 0.0, (1, frames))
        if given is None:
            return None
        count = given.value.shape[1]
        if count not in (frames, max(frames - 1, 1)):
            raise ValueError(f"There are {count} motion factors for {frames} frames; give {frames - 1} or {frames}.")
        factors = given.value.to(like.device).float().round().clamp(0, LARGEST_FACTOR)
        rows = sinusoid(factors, self.width).to(like.dtype)
        if self.order == "sin_then_interp":
            rows = self.embedded(for_each_frame(rows, frames)[:, list(indices)])
        else:
            rows = for_each_frame(self.embedded(rows), frames)[:, list(indices)]
        return self.weighted(rows, given.weight)


class AppearanceEmbedding(Embedding):
    """r^a = MLP(R), for every frame its row of the similarities.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), section 3.3, and its released network (`asim_embedding`).

    Args:
        reference: columns that the layer takes; those of clips of another length are resampled.
        channels: of the time embedding.
    """

    def __init__(self, reference: int, channels: int, absent: Absent, ops=nn):
        super().__init__(reference, channels, absent, ops)
        self.reference = reference

    def forward(self, given: Given | None, frames: int, indices: Sequence[int], like: Tensor) -> Tensor | None:
        """Return what is added to the time embeddings, as of `MotionEmbedding`; `given` are similarities.

        Of frames of a window the rows and columns are taken, then the columns resampled.

        Raises:
            ValueError: there are similarities of another number of frames.
        """
        given = taken(given, frames, self.absent, 1.0, (1, frames, frames))
        if given is None:
            return None
        if given.value.shape[1:] != (frames, frames):
            shape = " x ".join(map(str, given.value.shape[1:]))
            raise ValueError(f"The similarities are {shape} numbers; {frames} frames need {frames} x {frames}.")
        own = list(indices)
        rows = resampled_columns(given.value.to(like.device).float()[:, own][:, :, own], self.reference)
        return self.weighted(self.embedded(rows.to(like.dtype)), given.weight)
