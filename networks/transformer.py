"""HiGen's transformer over the frames of a clip."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from .temporal import FeedForward, FrameAttention, NormScope, normed, zero_init


class FrameTransformer(nn.Module):
    """HiGen's TTrans: two attentions over frames and a feed-forward, `inner` wide, without positions.

    The order of frames comes from the convolutions that it is used with. A clip of one frame gets nothing.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: HiGen (Qing et al. 2023), section 3.1, and its released network.
    """

    def __init__(self, channels: int, inner: int, heads: int, norm_scope: NormScope, ops=nn):
        super().__init__()
        self.norm_scope = norm_scope
        self.norm = ops.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, inner)
        self.attentions = nn.ModuleList(FrameAttention(inner, heads, positional=False, ops=ops) for _ in range(2))
        self.feed_forward = FeedForward(inner, ops)
        self.proj_out = zero_init(ops.Linear(inner, channels))

    def forward(self, x: Tensor, frames: int) -> Tensor | None:
        if frames == 1:
            return None
        h, w = x.shape[-2:]
        y = rearrange(normed(self.norm, x, frames, self.norm_scope), "(b f) c h w -> (b h w) f c", f=frames)
        y = self.proj_in(y)
        for attention in self.attentions:
            y = y + attention(y)
        y = self.proj_out(y + self.feed_forward(y))
        return rearrange(y, "(b h w) f c -> (b f) c h w", h=h, w=w)
