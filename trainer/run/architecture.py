"""The inflation that the options ask for: a preset's, with what they change of it, and the weights it starts with."""

from __future__ import annotations

from dataclasses import replace

from ...networks.config import Appearance, InflationConfig, Mapping, Motion, Prior, Resampling, Temporal, Tokens
from ...networks.kinds import idle_kinds
from ...networks.presets import PRESETS
from ...networks.sites import Structure
from ..losses.contrastive import check_middle
from ..options import DecoupleOptions, InflationOptions, VideoOptions

TEMPORAL = {
    "levels": "blocks",
    "middle": "middle",
    "heads": "heads",
    "positional": "positional",
    "norm_scope": "norm_scope",
    "layers": "layers",
    "narrow": "narrow",
}
"""Of the blocks over time: which option is for which field of their description."""

ACTS_ON = {
    "heads": {"attention"},
    "positional": {"attention"},
    "norm_scope": {"attention", "convolution", "transformer"},
    "layers": {"stacked"},
    "narrow": {"factorised"},
}
"""Kinds of blocks that have what an option changes."""


def inflation_config(options: InflationOptions, frames: int, structure: Structure) -> InflationConfig:
    """Return the preset, with what the options change of it.

    Raises:
        ValueError: the U-Net has no such levels, or nothing has what an option changes.
    """
    config = PRESETS[options.preset.removesuffix("_full")](structure, frames)
    config = replace(config, temporal=temporal_blocks(config.temporal or Temporal(), options))
    if options.halve is not None:
        config = replace(config, resampling=halved(options.halve, structure))
    return replace(config, mapping=mapping(config.mapping, options), tokens=tokens(config.tokens, options, frames))


def decoupled(config: InflationConfig, options: DecoupleOptions, features: str) -> InflationConfig:
    """Return the config with HiGen's prior and guidance, as far as the options want them.

    Args:
        features: what the appearance factor is measured on.
    """
    motion = Motion(f"{options.motion_norm}_mean_x_7168", options.interpolation)
    return replace(
        config,
        prior=Prior() if options.prior else None,
        motion=motion if options.motion else None,
        appearance=Appearance(options.frames, features) if options.appearance else None,
    )


def temporal_blocks(temporal: Temporal, options: InflationOptions) -> Temporal:
    given = {field: value for field, name in TEMPORAL.items() if (value := getattr(options, name)) is not None}
    if "levels" in given:
        given["levels"] = tuple(tuple(kinds.split("+")) for kinds in given["levels"])
    try:
        temporal = replace(temporal, **given)
    except ValueError as error:
        raise ValueError(f"--blocks, --heads or --layers: {error}") from None
    for field in given.keys() & ACTS_ON.keys():
        if not ACTS_ON[field] & temporal.kinds:
            raise ValueError(
                f"--{TEMPORAL[field].replace('_', '-')} acts on {' and '.join(sorted(ACTS_ON[field]))} blocks, which"
                f" --preset {options.preset} has not; it has {', '.join(sorted(temporal.kinds))}"
            )
    return temporal


def halved(levels: tuple[int, ...], structure: Structure) -> Resampling | None:
    if not levels:
        return None
    try:
        resampling = Resampling(levels)
        resampling.check(structure)
    except ValueError as error:
        raise ValueError(f"--halve has {error}") from None
    return resampling


def mapping(preset: Mapping | None, options: InflationOptions) -> Mapping | None:
    wanted = preset is not None if options.mapping is None else options.mapping
    if options.mapping_kernel is None:
        return (preset or Mapping()) if wanted else None
    if not wanted:
        raise ValueError("--mapping-kernel is of the mapping network, which is off: add --mapping")
    return Mapping(options.mapping_kernel)


def tokens(preset: Tokens | None, options: InflationOptions, frames: int) -> Tokens | None:
    wanted = preset is not None if options.tokens is None else options.tokens
    given = {} if options.token_count is None else {"count": options.token_count}
    given |= {} if options.token_gate is None else {"neutral": options.token_gate == "neutral"}
    if given and not wanted:
        raise ValueError("--token-count and --token-gate are of the frame-wise tokens, which are off: add --tokens")
    return replace(preset or Tokens(frames), **given) if wanted else None


def check_frames(options: VideoOptions, config: InflationConfig, structure: Structure) -> None:
    """Raise ValueError where too few frames are left at a level for what learns there.

    Blocks that idle on one frame would get no gradients, which other processes wait for.
    """
    if options.contrastive:
        check_middle(config, options.frames)
    for level in range(len(structure.levels)):
        idle = idle_kinds().intersection(config.temporal.at_level(level) if config.temporal else ())
        if idle and config.frames_at(level, options.frames) == 1:
            raise ValueError(
                f"--preset {options.preset} learns from neighbouring frames at every level, and at level {level} the"
                f" {options.frames} have become one: give more --frames, or --halve them at fewer levels"
            )
