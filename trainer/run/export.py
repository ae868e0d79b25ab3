"""The motion file at the end of a run: written, opened as its user will open it, and judged by how far it moved."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ...networks.atomic import remove_unfinished
from ...networks.config import InflationConfig
from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo, write_motion_file
from ...networks.sites import Structure
from ...networks.tensor_file import tensors_of
from ..base.division import gather
from .checkpoints import same
from .loop import Training

log = logging.getLogger("stillmotion")


@contextmanager
def ema_weights(training: Training) -> Iterator[None]:
    """Put the weights that will be exported into the network inside: EMA weights, where there are any."""
    if training.ema is None or not training.ema.n_averaged:
        yield
        return
    before = {name: tensor.clone() for name, tensor in training.weights.state_dict().items()}
    training.weights.load_state_dict(training.ema.module.state_dict())
    try:
        yield
    finally:
        training.weights.load_state_dict(before)


def exported_weights(training: Training, part: str = "inflation") -> dict[str, Tensor]:
    """Return the tensors of the motion file, on the first process: EMA weights where there are any.

    All processes must call it.

    Args:
        part: "inflation", or "spatial" for what trained of the image model.
    """
    with ema_weights(training):
        tensors = gather(training.weights[part].state_dict())
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def write_result(path: Path, tensors: Mapping[str, Tensor], info: MotionInfo) -> None:
    """Write the motion file, which is read back, and remove what a killed run left of one.

    Raises:
        OSError: it could not be written; an older file is untouched.
    """
    remove_unfinished(path.parent, glob.escape(path.name))
    write_motion_file(path, dict(tensors), info)


def check_written(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that a safetensors file holds these tensors, bit for bit, with one of them in memory at a time."""
    found = 0
    for name, tensor in tensors_of(path):
        assert name in tensors and same(tensor, tensors[name]), f"{path} reads back differently"
        found += 1
    assert found == len(tensors), f"{path} reads back differently"


def fresh_inflation(config: InflationConfig, structure: Structure, seed: int) -> Inflation:
    """Return a new inflation, the same for the same seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Inflation(config, structure)


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "accelerate", "peft")}
