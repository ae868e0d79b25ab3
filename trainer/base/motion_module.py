"""Motion modules of any program as motion files: what `convert` reads and what training may start from."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...networks.formats.files import explained, read_any_motion_file, read_motion_adapter
from ...networks.motion_file import MotionInfo
from .tensors import is_pickled_file, read_tensors


def read_motion_module(path: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Read a motion file, an AnimateDiff module or a MotionAdapter's folder as a motion file.

    Raises:
        FileNotFoundError, ValueError: each kind of damage or mismatch in its own sentence.
    """
    if path.is_dir():
        return read_motion_adapter(path)
    return explained(path, read_pickled(path)) if is_pickled_file(path) else read_any_motion_file(path)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of any file; a pickled one is opened by torch's reader for tensors only."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def described(info: MotionInfo) -> str:
    """Say in a phrase what a motion file holds."""
    kind = info.options.get("format", "motion file")
    parts = ", ".join(info.config.to_json()) or "nothing"
    widths = ", ".join(str(level.width) for level in info.structure.levels)
    return f"{kind} with {parts}, for a U-Net of {widths} channels ({info.family}), noise schedule {info.schedule}"
