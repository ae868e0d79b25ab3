"""Lumiere's blocks: convolutions over pixels and over frames at fine levels, attention over frames at the coarsest."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import FrameConvolution
from .temporal import FeedForward, FrameAttention, zero_init


class ConvolutionInflation(nn.Module):
    """A 3x3 convolution of each frame, one over three frames of each pixel, and a projection, zero at the start.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: Lumiere (Bar-Tal et al. 2024), section 3.1 and figure 4b. The paper leaves norm, activation and width open:
    here GroupNorm of each frame, SiLU, and `hidden` channels between the convolutions.
    """

    def __init__(self, channels: int, hidden: int, ops=nn):
        super().__init__()
        self.over_pixels = ops.Conv2d(channels, hidden, 3, padding=1)
        self.norm_pixels = ops.GroupNorm(32, hidden)
        self.over_frames = FrameConvolution(hidden, ops=ops)
        self.norm_frames = ops.GroupNorm(32, hidden)
        self.out = zero_init(ops.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.silu(self.norm_pixels(self.over_pixels(x)))
        y = F.silu(self.norm_frames(self.over_frames(y, frames)))
        return self.out(y)


class AttentionInflation(nn.Module):
    """Stacked transformer layers over the frames of each pixel, and a projection, zero at the start.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: Lumiere (Bar-Tal et al. 2024), section 3.1 and figure 4c; at the coarsest level alone, where it is cheap.
    """

    def __init__(self, channels: int, heads: int, layers: int, ops=nn):
        super().__init__()
        self.attentions = nn.ModuleList(FrameAttention(channels, heads, True, ops) for _ in range(layers))
        self.feed_forwards = nn.ModuleList(FeedForward(channels, ops) for _ in range(layers))
        self.out = zero_init(ops.Linear(channels, channels))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h, w = x.shape[-2:]
        y = rearrange(x, "(b f) c h w -> (b h w) f c", f=frames)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards):
            y = y + attention(y)
            y = y + feed_forward(y)
        return rearrange(self.out(y), "(b h w) f c -> (b f) c h w", h=h, w=w)
