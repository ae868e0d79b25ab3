"""Temporal regularised self-attention (TRS): a loss that is small where neighbouring frames look at the same places."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .objective import Seen, Term

Reduction = Literal["row_l1", "sum"]

CHUNK = 2**24
"""So many numbers of the attention maps are computed at once: 64 MiB."""


def trs_of_layer(q: Tensor, k: Tensor, frames: int, reduction: Reduction = "row_l1", chunk: int = CHUNK) -> Tensor:
    """Return how far the attention maps of neighbouring frames lie apart in one self-attention, in float32.

    mean over clip, head, query, j = 2 … F of ‖A_j[query] - A_{j-1}[query]‖₁, A_j = softmax(q_j k_jᵀ / √d), the norm a
    sum over keys: 0 where all frames have the same maps, 2 where none share a key, at every resolution. A clip of one
    frame has 0.

    The maps exist a chunk at a time and are computed anew in the backward pass: those of SD1.5's decoder would take
    12.8 GiB in fp16 for 16 frames of 512 x 512.

    Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763), L_TRS; it prints no normaliser.

    Args:
        q, k: queries and keys by head, `(clips * frames, heads, tokens, channels)`, the frames of a clip adjacent.
        reduction: "sum" is as printed, all absolute differences of a clip added up; the mean over clips remains.
        chunk: how many numbers of maps there may be at once; what is made of them takes about four times that. At
            the least one query of one head in all frames of a clip is computed.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    if frames == 1:
        return (q[:0].sum() + k[:0].sum()).to(wide)  # 0 that still has gradients
    clips, (_, heads, tokens, _) = len(q) // frames, q.shape
    count = {"row_l1": clips * heads * tokens * (frames - 1), "sum": clips}[reduction]
    with torch.autocast(q.device.type, enabled=False):  # logits in half precision would differ by their rounding
        q, k = (rearrange(t, "(clips frames) heads n d -> (clips heads) frames n d", frames=frames) for t in (q, k))
        return sum_of_changes(q, k.to(wide), chunk) / count


def sum_of_changes(q: Tensor, k: Tensor, chunk: int) -> Tensor:
    """Sum |A_j - A_{j-1}| over `(clips * heads, frames, tokens, channels)`, as many heads or queries at once as fit.

    It has the type of the keys: their gradients add up over chunks, and in half precision would lose digits.
    """
    per_query = k.shape[1] * k.shape[2]
    heads, queries = max(1, chunk // (per_query * q.shape[2])), max(1, chunk // per_query)
    parts = []
    for some_q, some_k in zip(q.split(heads), k.split(heads)):
        for fewer_q in some_q.split(queries, dim=2):
            parts.append(checkpoint(changes, fewer_q, some_k, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(parts).sum()


def changes(q: Tensor, k: Tensor) -> Tensor:
    maps = torch.softmax((q.to(k.dtype) * q.shape[-1] ** -0.5) @ k.mT, dim=-1)
    return maps.diff(dim=1).abs().sum()


def trs_weights(layers: int, reduction: Reduction = "row_l1") -> list[float]:
    """Return the factor of each decoder layer, in order of execution: λ_i / Σ λ with λ_i = i / N, i = 1 … N.

    For "sum" λ_i itself, as printed. Source: HARIVO, L_TRS.
    """
    total = {"row_l1": (layers + 1) / 2, "sum": 1.0}[reduction]
    return [i / layers / total for i in range(1, layers + 1)]


def trs_loss(seen: Seen, reduction: Reduction = "row_l1") -> Tensor:
    """Return L_TRS: how much the self-attention maps of the way up change from frame to frame, the last ones most."""
    weights = trs_weights(len(seen.penalties), reduction)
    return sum((w * penalty for w, penalty in zip(weights, seen.penalties)), seen.prediction.new_zeros(()))


def trs_term(weight: float, reduction: Reduction = "row_l1", ramp: int = 0) -> Term:
    penalty = partial(trs_of_layer, reduction=reduction)
    return Term("trs", weight, partial(trs_loss, reduction=reduction), ramp=ramp, penalty=penalty)
