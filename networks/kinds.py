"""The kinds of temporal blocks that there are."""

from __future__ import annotations

from .animatediff import MotionModule
from .block import TemporalBlock
from .higen import FrameTransformer, TemporalConvolution
from .lumiere import AttentionInflation, ConvolutionInflation

BLOCKS: dict[str, type[TemporalBlock]] = {
    block.kind: block
    for block in (MotionModule, TemporalConvolution, ConvolutionInflation, FrameTransformer, AttentionInflation)
}
"""By the name of the kind in motion files, in the order in which a layer's blocks are added up."""


def idle_kinds() -> set[str]:
    """Return the kinds that leave a clip of one frame alone."""
    return {kind for kind, block in BLOCKS.items() if block.idle_on_one_frame}
