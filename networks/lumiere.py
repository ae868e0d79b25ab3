"""Lumiere's temporal blocks: convolutions over pixels and frames at fine levels, attention at the coarsest."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .block import BlockOptions, TemporalBlock
from .convolution import FrameConvolution
from .frame_attention import GROUPS, FeedForward, FrameAttention, zero_init
from .sites import Site

HEAD_WIDTH = 64


class ConvolutionInflation(TemporalBlock):
    """A 3x3 convolution of each frame, one over three frames of each pixel, and a projection, zero at the start.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945), section 3.1 and figure 4b. The paper leaves norm,
    activation and width open: here GroupNorm of each frame, SiLU, and `hidden` channels between the convolutions.
    """

    kind, peak = "factorised", 6

    def __init__(self, channels: int, hidden: int, ops=nn):
        super().__init__()
        self.over_pixels = ops.Conv2d(channels, hidden, 3, padding=1)
        self.norm_pixels = ops.GroupNorm(GROUPS, hidden)
        self.over_frames = FrameConvolution(hidden, ops=ops)
        self.norm_frames = ops.GroupNorm(GROUPS, hidden)
        self.out = zero_init(ops.Conv2d(hidden, channels, 1))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = F.silu(self.norm_pixels(self.over_pixels(x)))
        y = F.silu(self.norm_frames(self.over_frames(y, frames)))
        return self.out(y)

    @staticmethod
    def channel_multiple(options: BlockOptions) -> int:
        return GROUPS * (2 if options.narrow else 1)

    @classmethod
    def name_with(cls, options: BlockOptions) -> str:
        return f"narrow {cls.kind}" if options.narrow else cls.kind

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> ConvolutionInflation:
        return cls(site.width, site.width // 2 if options.narrow else site.width, ops)


class AttentionInflation(TemporalBlock):
    """Stacked transformer layers over the frames of each pixel, and a projection, zero at the start.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945), section 3.1 and figure 4c; at the coarsest level alone,
    where it is cheap.
    """

    kind, peak = "stacked", 20

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

    @staticmethod
    def channel_multiple(options: BlockOptions) -> int:
        return 1

    @staticmethod
    def attention_count(options: BlockOptions) -> int:
        return options.layers

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> AttentionInflation:
        return cls(site.width, max(1, site.width // HEAD_WIDTH), options.layers, ops)
