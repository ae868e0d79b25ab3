"""Motion files in memory: read once, and shared by the nodes that use them, each with a ModelPatcher of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor

from ..networks.config import InflationConfig
from ..networks.inflation import MERGED, Inflation, without_merged
from ..networks.motion_file import MotionInfo
from ..networks.shown import shown
from ..networks.stamp import stamp_of
from ..networks.tensor_file import hash_of

log = logging.getLogger("stillmotion")


@dataclass(eq=False)
class LoadedMotion:
    """A motion file in memory: its queries and its LoRAs on another motion file, which the host merges, and the
    ModelPatcher of its other parts, if any."""

    path: Path
    info: MotionInfo
    queries: dict[str, Tensor]
    loras: dict[str, Tensor]
    patcher: comfy.model_patcher.ModelPatcher | None

    @cached_property
    def sha256(self) -> str:
        """Return the hash by which files that were learnt on top of this one name it.

        It is read again: the host may have merged LoRAs into the tensors in memory, or cast them.
        """
        return hash_of(read(self.path)[1])


_loaded: WeakValueDictionary[tuple, LoadedMotion] = WeakValueDictionary()
"""Files that some MODEL uses: several nodes share one copy, and a change of strength does not read the file again."""


def load_motion(path: Path) -> LoadedMotion:
    """Return a motion file, read anew where it has changed on disk. Raises FileNotFoundError, MotionFileError."""
    if not path.is_file():
        raise FileNotFoundError(shown(f"There is no motion file {path}."))
    stamp = str(path), stamp_of(path)
    loaded = _loaded.get(stamp)
    if loaded is None:
        from ..networks.formats.animatediff import remark  # here, for it would slow down ComfyUI's start

        info, tensors = read(path)
        if "format" in info.options:
            log.info("%s: %s", path.name, info.options["format"])
        if said := remark(info):
            log.warning("%s makes clips that are like AnimateDiff's, not the same: %s.", path.name, said)
        queries, loras = ({name: t for name, t in tensors.items() if f".{part}." in name} for part in MERGED)
        rest = without_merged(info.config) != InflationConfig()
        loaded = LoadedMotion(path, info, queries, loras, make_patcher(path, info, tensors) if rest else None)
        _loaded[stamp] = loaded
    return loaded


def make_patcher(path: Path, info: MotionInfo, tensors: dict[str, Tensor], disable_dynamic: bool = False):
    """Return a ModelPatcher of the inflation without what the host merges."""
    with torch.device("meta"):
        inflation = Inflation(without_merged(info.config), info.structure, comfy.ops.manual_cast)
    rest = {name: t for name, t in tensors.items() if not any(f".{part}." in name for part in MERGED)}
    inflation.load_state_dict(narrowed(rest, comfy.model_management.unet_dtype()), assign=True)
    plain = comfy.model_patcher.ModelPatcher
    patcher_class = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    patcher = patcher_class(
        inflation.eval().requires_grad_(False),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load_patcher, (path,))  # older hosts do not look at it
    return patcher


def narrowed(tensors: dict[str, Tensor], host: torch.dtype) -> dict[str, Tensor]:
    """Cast float32 to half precision where the host computes in it, which halves VRAM and saves the casts."""
    if host not in (torch.float16, torch.bfloat16):
        return tensors
    return {name: t.to(host) if t.dtype == torch.float32 else t for name, t in tensors.items()}


def load_patcher(path: Path, disable_dynamic: bool = False):
    """Return another ModelPatcher of a file: the host makes copies for further devices by it."""
    return make_patcher(path, *read(path), disable_dynamic)


def read(path: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Read a motion file of any kind. Raises FileNotFoundError, MotionFileError."""
    from ..networks.formats.files import read_any_motion_file  # here, for it would slow down ComfyUI's start

    return read_any_motion_file(path)
