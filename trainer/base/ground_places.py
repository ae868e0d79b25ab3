"""Motion models on this machine that `--over` may name: those in ComfyUI's folders and in the Hugging Face cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...networks.formats.files import ADAPTER_CONFIG, VARIANTS
from ...networks.formats.modules import module_tensors
from ...networks.formats.motion_lora import is_motion_lora
from ...networks.json_text import read_config
from ...networks.motion_file import read_motion_info
from ...networks.sites import Structure
from .auto import SUFFIXES, Candidate, walk
from .comfyui import model_folders
from .tensors import STRANGE, is_pickled_file, read_outlines

FOLDERS = "animatediff_models", "stillmotion"
EVOLVED = "custom_nodes/ComfyUI-AnimateDiff-Evolved/models"
"""Where AnimateDiff-Evolved looks beside its folder of models."""

FIRST_NORM = re.compile(r"down_blocks\.(\d+)\.motion_modules\.0\.(temporal_transformer\.)?norm\.weight")


def ground_places(comfyuis: Sequence[Path], hub: Path) -> Iterator[Candidate]:
    """Yield every file and folder where a motion model may be: what ComfyUI lists, and MotionAdapters in the cache."""
    for comfyui in comfyuis:
        folders = [folder for kind in FOLDERS for folder in model_folders(comfyui, kind)]
        for folder in (*folders, comfyui / EVOLVED):
            files = (path for below, _, names in walk(folder) for path in sorted(below / name for name in names))
            for path in files:
                if path.suffix.lower() in SUFFIXES:
                    yield Candidate(path, path.relative_to(folder).as_posix(), True)
    for config in sorted(hub.glob(f"models--*/snapshots/*/{ADAPTER_CONFIG}")):
        repository = config.parents[2].name.removeprefix("models--").replace("--", "/")
        yield Candidate(config.parent, repository, False)


def named_ground(path: Path, places: Iterator[Candidate]) -> Path:
    """Return the path where something is there, else the first place of this name, with or without its folder.

    Raises:
        FileNotFoundError: there is neither.
    """
    if path.exists():
        return path
    found = next((p.path for p in places if path.as_posix() in (p.name, Path(p.name).name)), None)
    if found is None:
        raise FileNotFoundError(
            f"there is no motion model {path}: --over takes a motion file, an AnimateDiff module for SD1.5 or a"
            " MotionAdapter's folder, by its path or its name in ComfyUI's models/stillmotion or animatediff_models"
        )
    return found


def grounds_for(structure: Structure, places: Iterator[Candidate]) -> Iterator[Candidate]:
    """Yield the places that hold a motion model for a U-Net, by the headers of their files alone."""
    for place in places:
        try:
            if _fits(place.path, structure):
                yield place
        except (ValueError, *STRANGE):  # damaged in whichever way, of another kind, or may not be read
            continue


def _fits(path: Path, structure: Structure) -> bool:
    if path.is_dir():
        if read_config(path / ADAPTER_CONFIG).get("_class_name") != "MotionAdapter":
            return False
        weights = next((path / name for name in VARIANTS if (path / name).is_file()), None)
        if weights is None:  # a download that was broken off
            return False
        path = weights
    tensors = read_outlines(path)
    modules = module_tensors(tensors)
    if modules:
        return not is_motion_lora(modules) and _widths(modules) == [level.width for level in structure.levels]
    if is_pickled_file(path):
        return False
    info = read_motion_info(path, fits=structure)
    return info.config.temporal is not None and info.over is None


def _widths(modules: Mapping[str, Tensor]) -> list[int]:
    """Return the widths of a module's levels, finest first."""
    norms = {int(match[1]): modules[name].numel() for name in modules if (match := FIRST_NORM.fullmatch(name))}
    return [norms[level] for level in sorted(norms)]
