"""Additions to the query matrices of the frozen attentions: a LoRA, or a full matrix."""

from __future__ import annotations

from torch import Tensor, nn

from .frame_attention import zero_init


class QueryLora(nn.Module):
    """A LoRA, W_Q + up · down, with `down` `(rank, channels)` random, `up` `(channels, rank)` zero at the start.

    Source: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1, with its scale alpha / rank fixed at 1.
    """

    def __init__(self, channels: int, rank: int, ops=nn):
        super().__init__()
        self.down = ops.Linear(channels, rank, bias=False)
        self.up = zero_init(ops.Linear(rank, channels, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens))


class QueryMatrix(nn.Module):
    """A full matrix, W_Q + diff, zero at the start: the papers' training of the query projections."""

    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.diff = zero_init(ops.Linear(channels, channels, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.diff(tokens)
