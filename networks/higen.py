"""HiGen's temporal blocks: convolutions over frames (TConv) and a transformer over frames (TTrans)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .block import BlockOptions, TemporalBlock
from .convolution import FrameConvolution
from .frame_attention import GROUPS, NormScope, TransformerOverFrames, normed, zero_init
from .sites import Site

HEAD_WIDTH = 64
FIRST_INNER = 512
"""Width inside the transformer after the first convolution."""


class TemporalConvolution(TemporalBlock):
    """HiGen's TConv: four times norm, SiLU and a convolution over frames, the last one zero at the start.

    A clip of one frame gets nothing: it is an image.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), and its released network.
    """

    kind, peak, idle_on_one_frame = "convolution", 5, True

    def __init__(self, channels: int, norm_scope: NormScope, ops=nn):
        super().__init__()
        self.norm_scope = norm_scope
        self.norms = nn.ModuleList(ops.GroupNorm(GROUPS, channels) for _ in range(4))
        self.convolutions = nn.ModuleList(FrameConvolution(channels, ops=ops) for _ in range(4))
        zero_init(self.convolutions[-1])

    def forward(self, x: Tensor, frames: int) -> Tensor | None:
        if frames == 1:
            return None
        for norm, convolution in zip(self.norms, self.convolutions):
            x = convolution(F.silu(normed(norm, x, frames, self.norm_scope)), frames)
        return x

    @staticmethod
    def goes_after(site: Site) -> bool:
        return site.kind == "res"

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> TemporalConvolution:
        return cls(site.width, options.norm_scope, ops)


class FrameTransformer(TransformerOverFrames, TemporalBlock):
    """HiGen's TTrans: two attentions over frames and a feed-forward, without positions.

    The order of frames comes from the convolutions that it is used with. A clip of one frame gets nothing.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), and its released network.
    """

    kind, peak, idle_on_one_frame = "transformer", 20, True

    def forward(self, x: Tensor, frames: int) -> Tensor | None:
        return None if frames == 1 else super().forward(x, frames)

    @staticmethod
    def goes_after(site: Site) -> bool:
        return site.kind in ("conv_in", "transformer")

    @staticmethod
    def width_at(site: Site) -> int:
        return FIRST_INNER if site.kind == "conv_in" else site.width

    @staticmethod
    def attention_count(options: BlockOptions) -> int:
        return 2

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> FrameTransformer:
        inner = cls.width_at(site)
        return cls(site.width, inner, max(1, inner // HEAD_WIDTH), False, options.norm_scope, ops)
