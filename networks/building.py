"""The modules of an inflation, site by site, as its config describes them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .condition import ConditionStem
from .config import InflationConfig, Temporal, TemporalLora
from .convolution import FrameConvolution
from .frame_attention import BlockFrameAttention, zero_init
from .guidance import AppearanceEmbedding, MotionEmbedding
from .kinds import BLOCKS
from .lora import Lora
from .mapping import MappingNetwork
from .prior import PriorStem
from .queries import QueryMatrix
from .recurrent import RecurrentAttention
from .resampler import TextResampler
from .sites import Site, Structure
from .temporal_lora import IN_BLOCK, PART, TemporalLoras
from .tokens import FrameTokens, TokenWeight

SAMPLE, TEXT, TIME = "sample", "text", "time"
"""Sites that are no layers: what goes into the U-Net, and its time embedding."""

TIME_FACTOR = 4
"""Channels of the time embedding for each channel of the finest level, in every Stable Diffusion."""

Built = Iterator[tuple[str, str, int | None, nn.Module]]
"""Site, part, level of the U-Net, module."""


def build(config: InflationConfig, structure: Structure, ops) -> Built:
    """Yield every module of an inflation; `ops` is where layers come from."""
    if config.mapping:
        yield SAMPLE, "mapping", None, MappingNetwork(config.mapping.kernel, ops)
    if config.tokens:
        yield TEXT, "tokens", None, FrameTokens(structure.context, config.tokens.frames, config.tokens.count, ops)
    yield from _build_guidance(config, structure, ops)
    for site in structure.sites():
        if config.prior and site.kind == "conv_in":
            yield site.name, "prior", site.level, PriorStem(site.width, config.prior.absent, ops)
        if (condition := config.condition) and site.kind == "conv_in":
            yield site.name, "condition", site.level, ConditionStem(site.width, condition.mask, condition.blank, ops)
        for kind in kinds_after(site, config.temporal):
            yield site.name, kind, site.level, BLOCKS[kind].build(site, config.temporal, ops)
        if config.resampling and site.kind in ("down", "up"):
            level = site.level - (site.kind == "up")
            if level in config.resampling.levels:
                convolution = FrameConvolution(site.width, stride=2 if site.kind == "down" else 1, ops=ops)
                yield site.name, "resampling", level, zero_init(convolution)
        for name in site.blocks:
            yield from _build_in_block(config, name, site, ops)
        if config.temporal_lora:
            yield from _build_temporal_loras(config.temporal_lora, site, ops)


def _build_guidance(config: InflationConfig, structure: Structure, ops) -> Built:
    width = structure.levels[0].width
    channels = TIME_FACTOR * width
    if resampler := config.resampler:
        sizes = resampler.tokens, resampler.width, resampler.layers, resampler.heads
        yield TEXT, "resampler", None, TextResampler(structure.context, *sizes, ops)
    if motion := config.motion:
        yield TIME, "motion", None, MotionEmbedding(width, channels, motion.order, motion.absent, ops)
    if appearance := config.appearance:
        yield TIME, "appearance", None, AppearanceEmbedding(appearance.frames, channels, appearance.absent, ops)


def kinds_after(site: Site, temporal: Temporal | None) -> list[str]:
    """Return the kinds of temporal blocks that come after a layer."""
    if temporal is None or (site.stage == "middle" and not temporal.middle):
        return []
    return [kind for kind in temporal.at_level(site.level) if BLOCKS[kind].goes_after(site)]


def _build_in_block(config: InflationConfig, block: str, site: Site, ops) -> Built:
    if config.frame_attention:
        heads = config.frame_attention.heads
        yield block, "frame_attention", site.level, BlockFrameAttention(site.width, heads, ops)
    if config.recurrence:
        yield f"{block}.attn1", "recurrence", site.level, RecurrentAttention(site.width, config.recurrence.mode, ops)
    if config.tokens:
        yield f"{block}.attn2", "tokens", site.level, TokenWeight(config.tokens.neutral)
    if config.queries:
        for attention in ("attn1", "attn2"):
            rank = config.queries.rank
            queries = QueryMatrix(site.width, ops) if rank is None else Lora(site.width, site.width, rank, ops)
            yield f"{block}.{attention}", "queries", site.level, queries


def _build_temporal_loras(lora: TemporalLora, site: Site, ops) -> Built:
    if attentions := attentions_after(site, lora.temporal):
        yield site.name, PART, site.level, TemporalLoras(attentions, lora.rank, ops)
    for block in site.blocks if lora.frame_attention else ():
        yield block, PART, site.level, TemporalLoras({IN_BLOCK: (1, site.width)}, lora.rank, ops)


def attentions_after(site: Site, temporal: Temporal | None) -> dict[str, tuple[int, int]]:
    """Return how many attentions over frames come after a layer in each kind of temporal block, and their channels."""
    if temporal is None:
        return {}
    blocks = (BLOCKS[kind] for kind in kinds_after(site, temporal))
    return {block.kind: (n, block.width_at(site)) for block in blocks if (n := block.attention_count(temporal))}
