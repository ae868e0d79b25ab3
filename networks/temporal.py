"""Attention over the frames of a clip, each pixel for itself: AnimateDiff's block and the few-shot papers' layer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

NormScope = Literal["frame", "clip"]
MOST_ROWS = 2**15


def zero_init(layer: nn.Module) -> nn.Module:
    """Zeroes weight and bias: a bias alone would already change the picture."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def frame_positions(frames: int, channels: int, like: Tensor) -> Tensor:
    """Sinusoidal positions of frames 0, 1, 2 …, `(frames, channels)`: sine on even, cosine on odd channels.

    Source: Vaswani et al. 2017, section 3.5, base 10000; the layout of AnimateDiff's positions.
    """
    frequency = torch.exp(torch.arange(0, channels, 2, device=like.device) * (-math.log(10000.0) / channels))
    angle = torch.arange(frames, device=like.device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def normed(norm: nn.Module, x: Tensor, frames: int, scope: NormScope) -> Tensor:
    """GroupNorm of activations `(clips * frames, channels, height, width)`, over each frame or over a whole clip."""
    if scope == "frame":
        return norm(x)
    return rearrange(norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames)), "b c f h w -> (b f) c h w")


class FrameAttention(nn.Module):
    """What self-attention over frames adds to tokens `(pixels, frames, channels)`: norm, attention, projection.

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
        q, k, v = rearrange(self.qkv(y), "n f (qkv heads d) -> qkv n heads f d", qkv=3, heads=self.heads)
        return self.out(rearrange(attend(q, k, v), "n heads f d -> n f (heads d)"))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of `(pixels, heads, frames, d)`; some of CUDA's kernels refuse more rows than MOST_ROWS at once."""
    if len(q) <= MOST_ROWS:
        return F.scaled_dot_product_attention(q, k, v)
    parts = zip(*(tensor.split(MOST_ROWS) for tensor in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts])


class BlockFrameAttention(nn.Module):
    """The last sub-layer of a transformer block in the few-shot papers: attention over frames, zero at the start.

    Shape: tokens of a spatial transformer `(clips * frames, pixels, channels)`; returns what is to be added to them.
    Source: Tune-A-Video (Wu et al. 2023), `attn_temp`, with its bias zeroed too.
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


class TemporalTransformer(nn.Module):
    """AnimateDiff's motion block: two attentions over frames and a feed-forward, between two projections.

    The last projection starts at zero, so a new block adds nothing: inflating a U-Net changes no image until the
    block is trained.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: AnimateDiff (Guo et al. 2023), section 3.2; HARIVO, section 3.

    Args:
        norm_scope: the GroupNorm's statistics are of each frame (AnimateDiff's own code) or of the clip (diffusers).
    """

    def __init__(self, channels: int, heads: int, positional: bool, norm_scope: NormScope, ops=nn):
        super().__init__()
        self.norm_scope = norm_scope
        self.norm = ops.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = ops.Linear(channels, channels)
        self.attentions = nn.ModuleList(FrameAttention(channels, heads, positional, ops) for _ in range(2))
        self.feed_forward = FeedForward(channels, ops)
        self.proj_out = zero_init(ops.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h, w = x.shape[-2:]
        y = rearrange(normed(self.norm, x, frames, self.norm_scope), "(b f) c h w -> (b h w) f c", f=frames)
        y = self.proj_in(y)
        for attention in self.attentions:
            y = y + attention(y)
        y = self.proj_out(y + self.feed_forward(y))
        return rearrange(y, "(b h w) f c -> (b f) c h w", h=h, w=w)
