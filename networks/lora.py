"""Low-rank changes of frozen matrices (LoRA): trained, joined, and cut to a lower rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frame_attention import zero_init


class Lora(nn.Module):
    """A LoRA, W + up · down, with `down` `(rank, inputs)` random, `up` `(outputs, rank)` zero at the start.

    Source: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1, with its scale alpha / rank fixed at 1.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, ops=nn):
        super().__init__()
        self.down = ops.Linear(inputs, rank, bias=False)
        self.up = zero_init(ops.Linear(rank, outputs, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens))


@dataclass(frozen=True, eq=False)
class Change:
    """What a LoRA adds to rows of a parameter, `up` · `down`, from row `start` on."""

    parameter: str
    start: int
    down: Tensor
    up: Tensor

    @property
    def rows(self) -> int:
        return len(self.up)


def padded(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the same product at a higher rank, with zeros behind."""
    more = rank - len(down)
    return F.pad(down, (0, 0, 0, more)), F.pad(up, (0, more))


def joined(loras: Iterable[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Return `down` and `up` whose product is the sum of weight · up · down over `loras`; their ranks add up.

    Args:
        loras: down, up and weight of each.
    """
    downs, ups, weights = zip(*loras)
    return torch.cat(downs), torch.cat([weight * up for up, weight in zip(ups, weights)], dim=1)


def truncated(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest `down` and `up` of a rank, in float32, and the share of the squared change that is kept.

    Nearest in the Frobenius norm (Eckart and Young 1936): the largest singular values of up · down, which are those of
    a matrix as small as its rank: with QR of both, up · down = Q_u (R_u R_dᵀ) Q_dᵀ.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().mT)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    root = values[:rank].sqrt()
    kept = values[:rank].square().sum() / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    up, down = q_up @ left[:, :rank] * root, root[:, None] * (right[:rank] @ q_down.mT)
    down, up = padded(down, up, rank)
    return down.float(), up.float(), kept
