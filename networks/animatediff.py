"""AnimateDiff's temporal block."""

from __future__ import annotations

from torch import nn

from .block import BlockOptions, TemporalBlock
from .frame_attention import TransformerOverFrames
from .sites import Site


class MotionModule(TransformerOverFrames, TemporalBlock):
    """AnimateDiff's motion module: two attentions over frames, with positions, and a feed-forward.

    Source: AnimateDiff (Guo et al. 2023, arXiv 2307.04725), section 4.2; HARIVO (Kwon et al. 2024, arXiv 2410.07763)
    builds on it.
    """

    kind, peak = "attention", 20

    @staticmethod
    def attention_count(options: BlockOptions) -> int:
        return 2

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> MotionModule:
        return cls(site.width, site.width, options.heads, options.positional, options.norm_scope, ops)
