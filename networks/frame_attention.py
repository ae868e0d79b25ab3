"""Attention over the frames of a clip, each pixel for itself: the layers that the papers' temporal blocks share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

NormScope = Literal["frame", "clip"]
MOST_ROWS = 2**15
GROUPS = 32
"""Of every GroupNorm; channels are a multiple of it."""


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero weight and bias, for a bias alone would already change the picture.

    Only the last of the layers in a row may start so: behind another zero, neither would get a gradient of its weight.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def frame_positions(frames: int, channels: int, like: Tensor) -> Tensor:
    """Return sinusoidal positions of frames 0, 1, 2 …, `(frames, channels)`: sine on even, cosine on odd channels.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, base 10000; the layout of AnimateDiff's positions.
    """
    frequency = torch.exp(torch.arange(0, channels, 2, device=like.device) * (-math.log(10000.0) / channels))
    angle = torch.arange(frames, device=like.device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def normed(norm: nn.Module, x: Tensor, frames: int, scope: NormScope) -> Tensor:
    """Normalise activations `(clips * frames, channels, height, width)` over each frame or over a whole clip."""
    if scope == "frame":
        return norm(x)
    return rearrange(norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames)), "b c f h w -> (b f) c h w")


class FrameAttention(nn.Module):
    """Self-attention over frames: what is added to tokens `(pixels, frames, channels)`: norm, attention, projection.

    On its own it is the temporal attention of the few-shot papers (`attn_temp`), without positions and with its
    projection zeroed; with positions it is one of the two attentions in AnimateDiff's motion block.
    """

    def __init__(self, channels: int, heads: int, positional: bool, ops=nn):
        super().__init__()
        if channels % heads:
            raise ValueError(f"The {channels} channels of a temporal attention cannot be split into {heads} heads.")
        self.heads, self.positional = heads, positional
        self.norm = ops.LayerNorm(channels)
        self.qkv = ops.Linear(channels, 3 * channels, bias=False)
        self.out = ops.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.norm(tokens)
        if self.positional:
            y = y + frame_positions(y.shape[1], y.shape[2], y)
        return self.out(attention_over_frames(self.qkv(y), self.heads))


def attention_over_frames(qkv: Tensor, heads: int) -> Tensor:
    """Attend in so many heads: queries, keys and values `(pixels, frames, 3 * width)` to `(pixels, frames, width)`.

    Some of CUDA's kernels refuse more rows than MOST_ROWS at once.
    """
    if len(qkv) > MOST_ROWS:
        return torch.cat([attention_over_frames(part, heads) for part in qkv.split(MOST_ROWS)])
    q, k, v = rearrange(qkv, "n f (qkv heads d) -> qkv n heads f d", qkv=3, heads=heads)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n heads f d -> n f (heads d)")


class BlockFrameAttention(nn.Module):
    """The last sub-layer of a transformer block in the few-shot papers: attention over frames, zero at the start.

    Shape: tokens of a spatial transformer `(clips * frames, pixels, channels)`; returns what is to be added to them.
    Source: Tune-A-Video (Wu et al. 2023, arXiv 2212.11565), `attn_temp`, with its bias zeroed too.
    """

    def __init__(self, channels: int, heads: int, ops=nn):
        super().__init__()
        self.attention = FrameAttention(channels, heads, positional=False, ops=ops)
        zero_init(self.attention.out)

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        pixels = tokens.shape[1]
        y = self.attention(rearrange(tokens, "(b f) n c -> (b n) f c", f=frames))
        return rearrange(y, "(b n) f c -> (b f) n c", n=pixels)


class FeedForward(nn.Module):
    """Norm, GEGLU of four times the width, projection: what is added to tokens `(..., channels)`."""

    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.norm = ops.LayerNorm(channels)
        self.expand = ops.Linear(channels, 8 * channels)
        self.out = ops.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.expand(self.norm(tokens)).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerOverFrames(nn.Module):
    """Two attentions over frames and a feed-forward, `inner` wide, between two projections, the last zero at the start.

    A new one adds nothing: inflating a U-Net changes no image until it is trained.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.

    Args:
        positional: attention knows the place of a frame in its clip.
        norm_scope: the GroupNorm's statistics are of each frame (AnimateDiff's own code) or of the clip (diffusers).
    """

    def __init__(self, channels: int, inner: int, heads: int, positional: bool, norm_scope: NormScope, ops=nn):
        super().__init__()
        self.norm_scope = norm_scope
        self.norm = ops.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, inner)
        self.attentions = nn.ModuleList(FrameAttention(inner, heads, positional, ops) for _ in range(2))
        self.feed_forward = FeedForward(inner, ops)
        self.proj_out = zero_init(ops.Linear(inner, channels))

    def forward(self, x: Tensor, frames: int) -> Tensor | None:
        h, w = x.shape[-2:]
        y = rearrange(normed(self.norm, x, frames, self.norm_scope), "(b f) c h w -> (b h w) f c", f=frames)
        y = self.proj_in(y)
        for attention in self.attentions:
            y = y + attention(y)
        y = self.proj_out(y + self.feed_forward(y))
        return rearrange(y, "(b h w) f c -> (b f) c h w", h=h, w=w)
