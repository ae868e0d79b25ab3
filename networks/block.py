"""The face of a kind of temporal block, so that a new kind is one file and one entry in kinds.py."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from torch import nn

from .frame_attention import GROUPS, NormScope
from .sites import Site


class BlockOptions(Protocol):
    """The options that blocks are built with, see `config.Temporal`."""

    heads: int
    positional: bool
    norm_scope: NormScope
    layers: int
    narrow: bool


class TemporalBlock(nn.Module):
    """A block over time: takes activations and the frames of a clip, and returns what is to be added to them.

    `kind`: its name in motion files. `peak`: how many tensors the size of its activations it holds at once at its
    worst, without gradients (tests/networks/test_peaks.py measures it). `idle_on_one_frame`: it returns None for a clip
    of one frame, and its weights get no gradient there.
    """

    kind: ClassVar[str]
    peak: ClassVar[int]
    idle_on_one_frame: ClassVar[bool] = False

    @staticmethod
    def goes_after(site: Site) -> bool:
        """Tell whether there is such a block after a layer of the U-Net: by default after every unit."""
        return site.ends_unit

    @staticmethod
    def channel_multiple(options: BlockOptions) -> int:
        """Return the number that the channels of the U-Net must be a multiple of."""
        return GROUPS

    @staticmethod
    def attention_count(options: BlockOptions) -> int:
        """Return how many attentions over frames it has, in `attentions`, as wide as `width_at`."""
        return 0

    @classmethod
    def name_with(cls, options: BlockOptions) -> str:
        """Return what errors call the block where it is built with these options."""
        return cls.kind

    @staticmethod
    def width_at(site: Site) -> int:
        """Return the width of the activations inside, which `peak` counts."""
        return site.width

    @classmethod
    def build(cls, site: Site, options: BlockOptions, ops=nn) -> Self:
        """Return a new block for a site; `ops` is where layers come from."""
        raise NotImplementedError
