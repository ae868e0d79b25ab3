"""The papers' combinations of parts, as inflations for a U-Net of any number of levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import Appearance, Condition, InflationConfig, Mapping, Motion, Prior, Resampling, Temporal, Tokens
from .sites import Structure

FEWEST_FOR_ALL_LEVELS = 32
"""Shorter clips keep their frame rate at the first resize: at the coarsest level there would be too few frames."""


def animatediff(structure: Structure, frames: int) -> InflationConfig:
    """Return attention over frames after every unit, as in AnimateDiff's first and third module."""
    return InflationConfig(temporal=Temporal())


def lumiere(structure: Structure, frames: int) -> InflationConfig:
    """Return Lumiere's space-time U-Net: convolutions, attention at the coarsest level, fewer frames at every
    resize."""
    resizes = len(structure.levels) - 1
    kinds = (("factorised",),) * resizes + (("stacked",),)
    halved = range(0 if frames >= FEWEST_FOR_ALL_LEVELS or resizes == 1 else 1, resizes)
    return InflationConfig(
        temporal=Temporal(levels=kinds, middle=True), resampling=Resampling(tuple(halved)) if halved else None
    )


def harivo(structure: Structure, frames: int) -> InflationConfig:
    """Return AnimateDiff's blocks with a mapping network before the U-Net and tokens of each frame's own."""
    return with_harivo(animatediff(structure, frames), frames)


def lumiere_harivo(structure: Structure, frames: int) -> InflationConfig:
    """Return a space-time U-Net with HARIVO's mapping network and tokens."""
    return with_harivo(lumiere(structure, frames), frames)


def higen(structure: Structure, frames: int) -> InflationConfig:
    """Return HiGen's layers: a convolution over frames after every ResBlock, attention after the first convolution and
    every spatial transformer."""
    return InflationConfig(temporal=Temporal(levels=(("convolution", "transformer"),), middle=True))


def with_harivo(config: InflationConfig, frames: int) -> InflationConfig:
    return replace(config, mapping=Mapping(), tokens=Tokens(frames))


def with_guidance(config: InflationConfig, frames: int) -> InflationConfig:
    """Add HiGen's spatial prior and both kinds of its guidance."""
    return replace(config, prior=Prior(), motion=Motion(), appearance=Appearance(frames))


def with_condition(config: InflationConfig) -> InflationConfig:
    """Add Lumiere's stem for known pixels."""
    return replace(config, condition=Condition())


Preset = Callable[[Structure, int], InflationConfig]

PRESETS: dict[str, Preset] = {
    "animatediff": animatediff,
    "lumiere": lumiere,
    "harivo": harivo,
    "lumiere-harivo": lumiere_harivo,
    "higen": higen,
}
"""By name: the inflation for a U-Net and clips of so many frames."""
