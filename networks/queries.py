"""Full additions to the query matrices of the frozen attentions; the other kind is a LoRA."""

from __future__ import annotations

from torch import Tensor, nn

from .frame_attention import zero_init


class QueryMatrix(nn.Module):
    """A full matrix, W_Q + diff, zero at the start: the papers' training of the query projections."""

    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.diff = zero_init(ops.Linear(channels, channels, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.diff(tokens)
