"""The motion model that another motion is learnt on top of: read, and held against the image model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from ...networks.inflation import Inflation
from ...networks.motion_file import check_fits
from ...networks.motion_info import MotionInfo, Over
from ...networks.sites import Structure
from ...networks.tensor_file import hash_of
from ...samplers.schedules import NoiseSchedule
from .motion_module import read_motion_module


@dataclass(frozen=True, eq=False)
class Ground:
    """A frozen motion model, what its file says of it, and what a file that is learnt on top of it will say."""

    path: Path
    info: MotionInfo
    inflation: Inflation
    over: Over


def read_ground(path: Path, name: str | None = None) -> Ground:
    """Read a motion file, an AnimateDiff module or a MotionAdapter's folder as a ground.

    Args:
        name: what files that are learnt on top of it call it; None: as its file or folder.

    Raises:
        FileNotFoundError, ValueError: each kind of damage in its own sentence, or it is no whole motion itself.
    """
    info, tensors = read_motion_module(path)
    check_whole(path, info, "give that file to --over")
    with torch.device("meta"):
        inflation = Inflation(info.config, info.structure)
    inflation.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return Ground(path, info, inflation, Over(name or path.name, hash_of(tensors), info.family))


def check_whole(path: Path, info: MotionInfo, remedy: str) -> None:
    """Raise ValueError, which ends in `remedy`, where a motion file was learnt on top of another one."""
    if info.over or info.config.temporal_lora:
        ground = info.over.name if info.over else "a motion model"
        raise ValueError(f"{path} was learnt on top of {ground}, and is no whole motion by itself: {remedy}")


def check_ground(ground: Ground, structure: Structure, prediction: str) -> None:
    """Raise ValueError where a ground was made for another U-Net, or for one that predicts something else."""
    check_fits(ground.path, ground.info, structure)
    if ground.info.prediction != prediction:
        raise ValueError(
            f"{ground.path} was trained on a model that predicts {ground.info.prediction}, and this base predicts"
            f" {prediction}: give the base that it was trained on, or one like it"
        )
    if ground.info.schedule not in get_args(NoiseSchedule):
        known = ", ".join(get_args(NoiseSchedule))
        raise ValueError(f"{ground.path} has the noise schedule {ground.info.schedule!r}; known are {known}")
