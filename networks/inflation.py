"""Everything that a motion file holds: the modules that turn an image U-Net into a video U-Net, keyed by site."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor, nn

from .clip import Clip, thin_rows
from .config import KINDS, InflationConfig, Kind, Temporal
from .convolution import FrameConvolution, TemporalConvolution
from .factorised import AttentionInflation, ConvolutionInflation
from .mapping import MappingNetwork, pad_channels
from .queries import QueryLora, QueryMatrix
from .recurrent import Attention, Projections, RecurrentMemory
from .resampling import repeat_rows
from .sites import Site, Structure
from .temporal import BlockFrameAttention, TemporalTransformer, zero_init
from .tokens import FrameTokens, TokenWeight, added_by_tokens
from .transformer import FrameTransformer

Part = Literal[Kind, "resampling", "mapping", "tokens", "frames", "memory", "queries"]

SAMPLE, TEXT = "sample", "text"
"""Sites that are no layers: what goes into the U-Net."""

HEAD_WIDTH = 64
FIRST_INNER = 512
"""Width inside HiGen's transformer after the first convolution."""


class Inflation(nn.Module):
    """The modules of `config` at the sites of a U-Net of this `structure`.

    Its state dict is what a motion file holds: `<site>.<part>.<parameter>`. A new inflation changes nothing, because
    each part adds something that starts at zero; where frames are halved it changes none of those that stay, and
    tokens start with hardly any weight. It knows neither host: a host runs the frozen U-Net and calls the functions
    below at its sites.

    Args:
        ops: where layers come from: `torch.nn`, or `comfy.ops.manual_cast` inside ComfyUI.

    Raises:
        ValueError: the U-Net has not the levels that the config speaks of, or not the channels that it needs.
    """

    def __init__(self, config: InflationConfig, structure: Structure, ops=nn):
        super().__init__()
        config.check(structure)
        self.config, self.structure = config, structure
        self._parts: dict[str, nn.Module] = {}
        self._levels: dict[str, int | None] = {}
        for site, part, level, module in _build(config, structure, ops):
            _register(self, f"{site}.{part}", module)
            self._parts[f"{site}.{part}"], self._levels[f"{site}.{part}"] = module, level

    def at(self, site: str, part: Part) -> nn.Module | None:
        """The module at a site, None where this inflation has none."""
        return self._parts.get(f"{site}.{part}")

    def level_of(self, site: str, part: Part) -> int | None:
        """The level of the U-Net that a module belongs to, None before it; of a resampling whose frames it halves."""
        return self._levels[f"{site}.{part}"]

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Every `<site>.<part>` with its module."""
        yield from self._parts.items()


def without_queries(config: InflationConfig) -> InflationConfig:
    """For hosts that merge the queries into the frozen weights instead of running them."""
    return replace(config, queries=None)


Built = Iterator[tuple[str, Part, int | None, nn.Module]]


def _build(config: InflationConfig, structure: Structure, ops) -> Built:
    if config.mapping:
        yield SAMPLE, "mapping", None, MappingNetwork(config.mapping.kernel, ops)
    if config.tokens:
        yield TEXT, "tokens", None, FrameTokens(structure.context, config.tokens.frames, config.tokens.count, ops)
    for site in structure.sites():
        for kind in _kinds_after(site, config.temporal):
            yield site.name, kind, site.level, _temporal_block(kind, site, config.temporal, ops)
        if config.resampling and site.kind in ("down", "up"):
            level = site.level - (site.kind == "up")
            if level in config.resampling.levels:
                convolution = FrameConvolution(site.width, stride=2 if site.kind == "down" else 1, ops=ops)
                yield site.name, "resampling", level, zero_init(convolution)
        for name in site.blocks:
            yield from _build_in_block(config, name, site, ops)


def _kinds_after(site: Site, temporal: Temporal | None) -> Iterator[Kind]:
    if temporal is None or (site.name.startswith("middle_block") and not temporal.middle):
        return
    for kind in temporal.at_level(site.level):
        if _goes_after(kind, site):
            yield kind


def _goes_after(kind: Kind, site: Site) -> bool:
    if kind == "convolution":
        return site.kind == "res"
    if kind == "transformer":
        return site.kind in ("conv_in", "transformer")
    return site.ends_unit


def _temporal_block(kind: Kind, site: Site, options: Temporal, ops) -> nn.Module:
    width, scope, heads = site.width, options.norm_scope, max(1, site.width // HEAD_WIDTH)
    if kind == "attention":
        return TemporalTransformer(width, options.heads, options.positional, scope, ops)
    if kind == "convolution":
        return TemporalConvolution(width, scope, ops)
    if kind == "factorised":
        return ConvolutionInflation(width, width // 2 if options.narrow else width, ops)
    if kind == "stacked":
        return AttentionInflation(width, heads, options.layers, ops)
    if site.kind == "conv_in":
        return FrameTransformer(width, FIRST_INNER, FIRST_INNER // HEAD_WIDTH, scope, ops)
    return FrameTransformer(width, width, heads, scope, ops)


def _build_in_block(config: InflationConfig, block: str, site: Site, ops) -> Built:
    if config.frames:
        yield block, "frames", site.level, BlockFrameAttention(site.width, config.frames.heads, ops)
    if config.memory:
        yield f"{block}.attn1", "memory", site.level, RecurrentMemory(site.width, config.memory.mode, ops)
    if config.tokens:
        yield f"{block}.attn2", "tokens", site.level, TokenWeight(config.tokens.neutral)
    if config.queries:
        for attention in ("attn1", "attn2"):
            rank = config.queries.rank
            queries = QueryMatrix(site.width, ops) if rank is None else QueryLora(site.width, rank, ops)
            yield f"{block}.{attention}", "queries", site.level, queries


def _register(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


@dataclass(frozen=True)
class Attached:
    """One inflation in use. Strengths are factors of what its parts add; 0 is the frozen model, 1 as trained.

    `memory` is of the recurrence, `mapping` of the mapping network, `temporal` of all others. `levels` are further
    factors at each level of the U-Net, finest first; none: 1. `keyframes` are further factors (frame, factor) over
    the frames of the whole video, linear between, constant before the first and after the last; none: 1.
    """

    inflation: Inflation
    temporal: float = 1.0
    memory: float = 1.0
    mapping: float = 1.0
    levels: tuple[float, ...] = ()
    keyframes: tuple[tuple[int, float], ...] = ()

    def strength(self, site: str, part: Part) -> float:
        """Of the module at a site."""
        strength = {"memory": self.memory, "mapping": self.mapping}.get(part, self.temporal)
        level = self.inflation.level_of(site, part)
        return strength * (self.levels[level] if self.levels and level is not None else 1.0)

    def factor(self, frame: int) -> float:
        """Of a frame of the whole video, by the keyframes."""
        after = bisect(self.keyframes, frame, key=itemgetter(0))
        if after in (0, len(self.keyframes)):
            return self.keyframes[max(0, after - 1)][1]
        (start, low), (end, high) = self.keyframes[after - 1 : after + 1]
        return low + (high - low) * (frame - start) / (end - start)


def _active(attached: Iterable[Attached], site: str, part: Part) -> Iterator[tuple[Attached, nn.Module]]:
    for a in attached:
        module = a.inflation.at(site, part)
        if module is not None and a.strength(site, part):
            yield a, module


def _add(out: Tensor, added: Tensor | None, a: Attached, site: str, part: Part, clip: Clip) -> Tensor:
    """`out`, of rows `(clips * frames, ...)`, with what a module adds by its strength."""
    if added is None:
        return out
    if a.keyframes:
        factors = added.new_tensor([a.factor(frame) for frame in clip.indices]).repeat(len(added) // clip.frames)
        added = added * factors.view(-1, *[1] * (added.ndim - 1))
    return torch.add(out, added, alpha=a.strength(site, part))


def before_unet(sample: Tensor, attached: Iterable[Attached], clip: Clip) -> Tensor:
    """The U-Net's input `(clips * frames, 4 or more, height, width)`, with what all mapping networks add.

    Each sees the same latents; channels behind the first four are not theirs.
    """
    out = sample
    for a, module in _active(attached, SAMPLE, "mapping"):
        added = pad_channels(module(sample[:, :4], clip.frames), sample)
        out = _add(out, added, a, SAMPLE, "mapping", clip)
    return out


def after_layer(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    """Activations `(clips * frames, channels, height, width)` after a layer, with what all temporal blocks add.

    Each sees the same `x`, so that their order does not matter.
    """
    out = x
    for kind in KINDS:
        for a, module in _active(attached, site, kind):
            out = _add(out, module(x, clip.frames), a, site, kind, clip)
    return out


def resampled(attached: Iterable[Attached], site: str) -> bool:
    """Whether the number of frames changes after this layer, a resize of the U-Net."""
    return any(True for _ in _active(attached, site, "resampling"))


def halve_frames(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    """Frames 0, 2, 4, … of activations after a down-resize, with what the convolutions of all inflations add.

    Source: Lumiere (Bar-Tal et al. 2024), section 3.1 and appendix B: a convolution that starts as the identity, of
    which every second frame is kept.
    """
    out, thinned = thin_rows(x, clip.frames), clip.thinned()
    for a, module in _active(attached, site, "resampling"):
        out = _add(out, module(x, clip.frames), a, site, "resampling", thinned)
    return out


def double_frames(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip, finer: Clip) -> Tensor:
    """Every frame of activations after an up-resize twice, with what the convolutions of all inflations add.

    Args:
        clip, finer: the frames of `x`, and those that there were before they were halved.
    """
    x = repeat_rows(x, clip.frames, finer.frames)
    out = x
    for a, module in _active(attached, site, "resampling"):
        out = _add(out, module(x, finer.frames), a, site, "resampling", finer)
    return out


def after_block(tokens: Tensor, attached: Iterable[Attached], block: str, clip: Clip) -> Tensor:
    """Tokens `(clips * frames, pixels, channels)` after a transformer block, with what all inflations add."""
    out = tokens
    for a, module in _active(attached, block, "frames"):
        out = _add(out, module(tokens, clip.frames), a, block, "frames", clip)
    return out


def after_self_attention(
    plain: Tensor,
    tokens: Tensor,
    attached: Iterable[Attached],
    site: str,
    clip: Clip,
    project: Projections,
    attention: Attention,
) -> Tensor:
    """Output of the self-attention `site` for normalised `tokens`, with what all recurrent memories add."""
    out = plain
    for a, module in _active(attached, site, "memory"):
        added = module(tokens, plain, project, attention, clip.frames)
        out = _add(out, added, a, site, "memory", clip)
    return out


def frame_tokens(text: Tensor, attached: Sequence[Attached], clip: Clip) -> list[Tensor | None]:
    """The tokens that each inflation has for each row of `text`, `(clips * frames, tokens, channels)`."""
    tokens = []
    for a in attached:
        module = a.inflation.at(TEXT, "tokens") if a.temporal else None
        tokens.append(None if module is None else module(text[:: clip.frames], clip.frames))
    return tokens


def after_cross_attention(
    plain: Tensor,
    normed: Tensor,
    text: Tensor,
    tokens: Sequence[Tensor | None],
    attached: Sequence[Attached],
    site: str,
    clip: Clip,
    project: Projections,
) -> Tensor:
    """Output of the cross-attention `site` for its normalised input and `text`, with what all frame-wise tokens add.

    Args:
        tokens: what `frame_tokens` returned, at the frames of `clip`.
    """
    out = plain
    for a, rows in zip(attached, tokens):
        if rows is not None and a.strength(site, "tokens"):
            added = added_by_tokens(project, normed, text, rows, a.inflation.at(site, "tokens")(normed))
            out = _add(out, added, a, site, "tokens", clip)
    return out
