"""LoRAs on the attentions over frames of another inflation: a motion that is learnt on top of a motion model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .lora import Change, Lora

PART = "temporal_lora"
PROJECTIONS = "q", "k", "v", "out"

IN_BLOCK = "frame_attention"
"""The one kind of attention over frames that is alone at its place."""


class AttentionLora(nn.Module):
    """What is added to the projections of a `FrameAttention`, nothing at the start.

    Source: MotionLoRA of AnimateDiff (Guo et al. 2023, arXiv 2307.04725), section 4.3; on its output too.
    """

    def __init__(self, channels: int, rank: int, ops=nn):
        super().__init__()
        self.q, self.k, self.v, self.out = (Lora(channels, channels, rank, ops) for _ in PROJECTIONS)

    def qkv(self, tokens: Tensor) -> Tensor:
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)


class TemporalLoras(nn.ModuleDict):
    """The LoRAs at a site: of each kind of block there, one for each of its attentions in order."""

    def __init__(self, attentions: Mapping[str, tuple[int, int]], rank: int, ops=nn):
        """Take how many attentions there are of each kind, and their channels."""
        super().__init__(
            {
                kind: nn.ModuleList(AttentionLora(channels, rank, ops) for _ in range(count))
                for kind, (count, channels) in attentions.items()
            }
        )


def attention_path(site: str, kind: str, number: int) -> str:
    """Return where an inflation has the attention over frames that a LoRA changes."""
    return f"{site}.{kind}.attention" if kind == IN_BLOCK else f"{site}.{kind}.attentions.{number}"


def put_on(ground: nn.Module, parts: Iterable[tuple[str, nn.Module]]) -> None:
    """Make the attentions over frames of an inflation, `ground`, add what the LoRAs of another one say.

    The weights of `ground` stay as they are; the LoRAs keep their one owner.

    Args:
        parts: of the other one, `<site>.<part>` and module.
    """
    for path, part in parts:
        if isinstance(part, TemporalLoras):
            site = path.removesuffix(f".{PART}")
            for kind, loras in part.items():
                for number, lora in enumerate(loras):  # pyright: ignore[reportArgumentType]
                    _extend(ground.get_submodule(attention_path(site, kind, number)), lora)


def _extend(attention: nn.Module, lora: AttentionLora) -> None:
    attention.qkv.register_forward_hook(lambda _, tokens, out: out + lora.qkv(*tokens))
    attention.out.register_forward_hook(lambda _, tokens, out: out + lora.out(*tokens))


class Place(NamedTuple):
    """Which projection of which attention a LoRA is of: site of the U-Net, kind of block there, number of the attention
    in it, and one of `PROJECTIONS`."""

    site: str
    kind: str
    number: int
    projection: str

    @property
    def name(self) -> str:
        """Return what an inflation calls the LoRA."""
        return f"{self.site}.{PART}.{self.kind}.{self.number}.{self.projection}"


def loras_in(tensors: Mapping[str, Tensor]) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Yield every LoRA among an inflation's tensors: its place, down and up."""
    for name, up in tensors.items():
        site, _, rest = name.partition(f".{PART}.")
        if rest.endswith(".up.weight"):
            kind, number, projection, *_ = rest.split(".")
            place = Place(site, kind, int(number), projection)
            yield place, tensors[f"{place.name}.down.weight"], up


def changes(tensors: Mapping[str, Tensor]) -> Iterator[Change]:
    """Yield what the LoRAs among an inflation's tensors change in another one's, for hosts that merge them."""
    for place, down, up in loras_in(tensors):
        path = attention_path(place.site, place.kind, place.number)
        if place.projection == "out":
            yield Change(f"{path}.out.weight", 0, down, up)
        else:
            yield Change(f"{path}.qkv.weight", len(up) * PROJECTIONS.index(place.projection), down, up)
