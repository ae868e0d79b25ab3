"""Motion files of every kind that can be read: ours, and motion modules of AnimateDiff and diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..motion_file import (
    MotionFileError,
    MotionInfo,
    check_container,
    check_finite,
    check_numbers,
    read_motion_file,
)
from .animatediff import from_animatediff, is_animatediff
from .higen import is_higen, is_of_vgen
from .modules import MODULE, Tensors, module_tensors
from .motion_adapter import from_motion_adapter
from .motion_lora import is_motion_lora

TELLING = re.compile(rf"{MODULE.pattern}|img_encoder\.|conv_in\.weight$")
ADAPTER_TENSORS, ADAPTER_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"


def read_any_motion_file(path: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Read as `read_motion_file` does, a safetensors file of any kind.

    Raises:
        FileNotFoundError, MotionFileError: each kind of damage or mismatch in its own sentence.
    """
    tensors = read_modules(path)
    return explained(path, tensors) if any(map(MODULE.search, tensors)) else read_motion_file(path)


def read_motion_adapter(folder: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the adapter in a folder that diffusers wrote. Errors as in `read_any_motion_file`."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no MotionAdapter as diffusers saves one: it holds no {ADAPTER_CONFIG}.")
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise MotionFileError(f"{folder / ADAPTER_CONFIG} cannot be read ({error}); copy the folder again.") from None
    if not isinstance(config, dict) or config.get("_class_name") != "MotionAdapter":
        raise MotionFileError(f"{folder / ADAPTER_CONFIG} does not describe a MotionAdapter.")
    return explained(folder, read_modules(folder / ADAPTER_TENSORS), config)


def explained(path: Path, tensors: Tensors, config: dict | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return `from_tensors`, whose errors name the file."""
    check_numbers(path, {name: KINDS.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()})
    check_finite(path, tensors)
    try:
        return from_tensors(tensors, config)
    except ValueError as error:
        raise MotionFileError(f"{path} cannot be used: {error}.") from None


KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def from_tensors(tensors: Tensors, config: dict | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the inflation that these tensors of a motion module are; the rest of a checkpoint is not looked at.

    Raises:
        ValueError: they are none of a known kind, or damaged.
    """
    modules = module_tensors(tensors)
    _check_whole(tensors)
    if not modules:
        raise ValueError(_why_none(tensors))
    if is_motion_lora(modules):
        raise ValueError("it is a motion LoRA; `python -m trainer convert --lora` merges it into a motion module")
    return from_animatediff(modules) if is_animatediff(modules) else from_motion_adapter(modules, config)


def _why_none(tensors: Tensors) -> str:
    if is_higen(tensors):
        return "it is HiGen's release, image model and motion in one: `python -m trainer convert` makes two files of it"
    if is_of_vgen(tensors):
        return "it is a network of VGen's (I2VGen-XL, for example) other than HiGen's, the only one that can be used"
    return "it holds no motion modules, as AnimateDiff's files and diffusers' MotionAdapter do"


def _check_whole(tensors: Tensors) -> None:
    """Refuse modules that were trained together with something else: without it they make worse clips."""
    for name, tensor in tensors.items():
        if "img_encoder." in name:
            raise ValueError("it holds an image encoder (AnimateLCM-I2V's); only text-to-video modules can be used")
        if name.endswith("conv_in.weight") and tensor.ndim == 4 and tensor.shape[1] != 4:
            raise ValueError(f"its U-Net takes {tensor.shape[1]} channels (as PIA's); only modules for 4 can be used")


def read_modules(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file that say what motion modules it holds; of a file of ours, none."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no motion file {path}.")
    check_container(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            # copied, not mapped: a mapped file could change under the tensors
            return {name: file.get_tensor(name).clone() for name in file.keys() if TELLING.search(name)}
    except SafetensorError as error:
        raise MotionFileError(f"{path} is damaged or cut short ({error}); copy it again.") from None
