"""Everything that a motion file holds: the modules that turn an image U-Net into a video U-Net, keyed by site."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .clip import Clip
from .queries import QueryLora, QueryMatrix
from .recurrent import Attention, MemoryMode, Projections, RecurrentMemory
from .sites import Structure
from .temporal import BlockFrameAttention, NormScope, TemporalTransformer

Part = Literal["temporal", "frames", "memory", "queries"]


@dataclass(frozen=True)
class Temporal:
    """AnimateDiff's motion block after every unit; `middle`: after the middle transformer too."""

    heads: int = 8
    positional: bool = True
    norm_scope: NormScope = "frame"
    middle: bool = False

    def __post_init__(self):
        _check_whole("heads", self.heads)
        _check_choice("norm_scope", self.norm_scope, get_args(NormScope))
        _check_choice("positional", self.positional, (True, False))
        _check_choice("middle", self.middle, (True, False))


@dataclass(frozen=True)
class Frames:
    """Attention over frames as the last sub-layer of every transformer block."""

    heads: int = 8

    def __post_init__(self):
        _check_whole("heads", self.heads)


@dataclass(frozen=True)
class Memory:
    """Recurrent attention in every self-attention."""

    mode: MemoryMode = "gated_scan"

    def __post_init__(self):
        _check_choice("mode", self.mode, get_args(MemoryMode))


@dataclass(frozen=True)
class Queries:
    """Trained queries of every self- and cross-attention: a LoRA of this rank, or full matrices where it is None."""

    rank: int | None = 16

    def __post_init__(self):
        if self.rank is not None:
            _check_whole("rank", self.rank)


def _check_whole(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} {value!r}; allowed are whole numbers from 1")


def _check_choice(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r}; allowed are {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class InflationConfig:
    """Which parts an inflation has; each is optional and independent of the others."""

    temporal: Temporal | None = None
    frames: Frames | None = None
    memory: Memory | None = None
    queries: Queries | None = None

    def to_json(self) -> dict:
        return {part: options for part, options in asdict(self).items() if options is not None}

    @classmethod
    def from_json(cls, data: dict) -> InflationConfig:
        """The inverse of `to_json`.

        Raises:
            ValueError: a part or an option that this version does not know, or a value that is not allowed.
        """
        if not isinstance(data, dict):
            raise ValueError(f"its parts are {data!r}; they must be an object")
        if unknown := sorted(set(data) - set(PARTS)):
            raise ValueError(f"it has a part {unknown[0]!r}; this version knows {', '.join(PARTS)}")
        return cls(**{part: _part_from_json(part, options) for part, options in data.items()})


PARTS = {"temporal": Temporal, "frames": Frames, "memory": Memory, "queries": Queries}


def _part_from_json(part: str, options: dict):
    known = sorted(field.name for field in fields(PARTS[part]))
    if not isinstance(options, dict):
        raise ValueError(f"the options of its part {part!r} are {options!r}; they must be an object")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"its part {part!r} has an option {unknown[0]!r}; this version knows {', '.join(known)}")
    try:
        return PARTS[part](**options)
    except ValueError as error:
        raise ValueError(f"its part {part!r} has {error}") from None


class Inflation(nn.Module):
    """The modules of `config` at the sites of a U-Net of this `structure`.

    Its state dict is what a motion file holds: `<site>.<part>.<parameter>`. A new inflation changes nothing, because
    each part adds something that starts at zero. It knows neither host: a host runs the frozen U-Net and adds
    `at(site, part)(…)` to the activations of each site.

    Args:
        ops: where layers come from: `torch.nn`, or `comfy.ops.manual_cast` inside ComfyUI.
    """

    def __init__(self, config: InflationConfig, structure: Structure, ops=nn):
        super().__init__()
        self.config, self.structure = config, structure
        self._parts: dict[str, nn.Module] = {}
        for site, part, module in _build(config, structure, ops):
            _register(self, f"{site}.{part}", module)
            self._parts[f"{site}.{part}"] = module

    def at(self, site: str, part: Part) -> nn.Module | None:
        """The module at a site, None where this inflation has none."""
        return self._parts.get(f"{site}.{part}")

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Every `<site>.<part>` with its module."""
        yield from self._parts.items()


def without_queries(config: InflationConfig) -> InflationConfig:
    """For hosts that merge the queries into the frozen weights instead of running them."""
    return replace(config, queries=None)


def _build(config: InflationConfig, structure: Structure, ops) -> Iterator[tuple[str, Part, nn.Module]]:
    for site in structure.sites():
        if config.temporal and site.ends_unit and (config.temporal.middle or not site.name.startswith("middle_block")):
            options = config.temporal
            block = TemporalTransformer(site.width, options.heads, options.positional, options.norm_scope, ops)
            yield site.name, "temporal", block
        for name in site.blocks:
            yield from _build_in_block(config, name, site.width, ops)


def _build_in_block(config: InflationConfig, block: str, width: int, ops) -> Iterator[tuple[str, Part, nn.Module]]:
    if config.frames:
        yield block, "frames", BlockFrameAttention(width, config.frames.heads, ops)
    if config.memory:
        yield f"{block}.attn1", "memory", RecurrentMemory(width, config.memory.mode, ops)
    if config.queries:
        for attention in ("attn1", "attn2"):
            rank = config.queries.rank
            queries = QueryMatrix(width, ops) if rank is None else QueryLora(width, rank, ops)
            yield f"{block}.{attention}", "queries", queries


def _register(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


@dataclass(frozen=True)
class Attached:
    """One inflation in use. Strengths are factors of what its parts add; 0 is the frozen model, 1 as trained."""

    inflation: Inflation
    temporal: float = 1.0
    memory: float = 1.0


def _active(attached: Iterable[Attached], site: str, part: Part) -> Iterator[tuple[float, nn.Module]]:
    for a in attached:
        strength = a.memory if part == "memory" else a.temporal
        if strength and (module := a.inflation.at(site, part)) is not None:
            yield strength, module


def after_unit(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    """Activations `(clips * frames, channels, height, width)` after a unit, with what all inflations add.

    Each sees the same `x`, so that their order does not matter.
    """
    out = x
    for strength, module in _active(attached, site, "temporal"):
        out = torch.add(out, module(x, clip.frames), alpha=strength)
    return out


def after_block(tokens: Tensor, attached: Iterable[Attached], block: str, clip: Clip) -> Tensor:
    """Tokens `(clips * frames, pixels, channels)` after a transformer block, with what all inflations add."""
    out = tokens
    for strength, module in _active(attached, block, "frames"):
        out = torch.add(out, module(tokens, clip.frames), alpha=strength)
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
    for strength, module in _active(attached, site, "memory"):
        out = torch.add(out, module(tokens, plain, project, attention, clip.frames), alpha=strength)
    return out
