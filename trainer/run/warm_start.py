"""The inflation before the first step: new, or with the weights of a motion file of any kind in it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...networks.config import InflationConfig, Resampling
from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo
from ...networks.sites import Structure
from ..base.motion_module import described, read_motion_module
from ..options import InflationOptions
from .export import fresh_inflation

log = logging.getLogger("stillmotion")


def starting_inflation(
    options: InflationOptions, config: InflationConfig, structure: Structure, seed: int
) -> Inflation:
    """Return the inflation of `config` that training starts with, the same for the same seed and `--init` file.

    Raises:
        FileNotFoundError, ValueError: that file cannot be read, has nothing that trains here, or contradicts --halve.
    """
    if options.init is None:
        return fresh_inflation(config, structure, seed)
    info, tensors = read_motion_module(options.init)
    config = as_trained(config, info.config)
    if is_own(info):
        config = replace(config, resampling=halving_of(options, config.resampling, info))
    inflation = fresh_inflation(config, structure, seed)
    take_over(options.init, options.preset, inflation, info, tensors)
    if info.schedule != options.schedule:
        log.warning(
            "%s was trained on the schedule %s; --schedule is %s.", options.init, info.schedule, options.schedule
        )
    return inflation


def as_trained(config: InflationConfig, other: InflationConfig) -> InflationConfig:
    """Return the config with temporal blocks as another has them, where these are of the same kinds.

    No tensor tells what a norm sees, whether frames have positions, and how many heads there are.
    """
    ours, theirs = config.temporal, other.temporal
    if not ours or not theirs or ours.levels != theirs.levels:
        return config
    return replace(config, temporal=replace(theirs, narrow=ours.narrow))


def is_own(info: MotionInfo) -> bool:
    """Tell whether a motion file comes from this trainer, which halves frames, and from no other program."""
    made_from = info.options.get("made_from")
    return "format" not in {**info.options, **(made_from if isinstance(made_from, dict) else {})}


def halving_of(options: InflationOptions, preset: Resampling | None, info: MotionInfo) -> Resampling | None:
    """Return the halving of frames that a motion file was trained with, which no other one may replace."""
    theirs = info.config.resampling
    if options.halve is not None and preset != theirs:
        raise ValueError(
            f"--halve is {levels_of(preset)}, but {options.init} was trained with {levels_of(theirs)}: leave --halve"
            " out to go on as it was trained, or leave --init out"
        )
    if preset != theirs:
        log.info("Frames are halved as in %s (--halve %s), not as in the preset.", options.init, levels_of(theirs))
    return theirs


def levels_of(resampling: Resampling | None) -> str:
    return " ".join(map(str, resampling.levels)) if resampling else "nowhere"


def take_over(path: Path, preset: str, inflation: Inflation, info: MotionInfo, tensors: dict[str, Tensor]) -> None:
    """Put those tensors of a motion file into an inflation that it has too, and say which parts start new."""
    own = inflation.state_dict()
    used = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not used:
        raise ValueError(
            f"--init {path} has nothing that this run trains, as its --preset is {preset}; what is there is"
            f" {described(info)}"
        )
    inflation.load_state_dict(own | used)
    log.info("%d of %d tensors start as in %s: %s.", len(used), len(own), path, parts_of(inflation, used))
    if new := own.keys() - used.keys():
        log.info("%d start new: %s.", len(new), parts_of(inflation, new))
    if unused := tensors.keys() - used.keys():
        log.warning("%d of the %d tensors of %s are not used.", len(unused), len(tensors), path)
    if inflation.config.resampling and not info.config.resampling:
        log.warning(
            "%s was trained on every frame; here frames are halved after levels %s, and its blocks below see fewer.",
            *(path, levels_of(inflation.config.resampling)),
        )


def parts_of(inflation: Inflation, names: Iterable[str]) -> str:
    """Count tensors by part: "320 attention, 12 resampling"."""
    paths = [path for path, _ in inflation.parts()]
    counts = Counter(path.rpartition(".")[2] for name in names for path in paths if name.startswith(f"{path}."))
    return ", ".join(f"{count} {part}" for part, count in sorted(counts.items()))
