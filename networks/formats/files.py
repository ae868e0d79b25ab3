"""Motion files of every kind that can be read: ours, and motion modules of AnimateDiff and diffusers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ..json_text import read_config
from ..motion_file import MotionFileError, MotionInfo, check_finite, check_numbers, opened, read_opened
from ..recognise import MOTION_LORA, kind_of_names
from ..tensor_file import NAMES, Header, tensors_in
from .animatediff import from_animatediff, is_animatediff
from .higen import is_higen, is_of_vgen
from .modules import MODULE, Shapes, T, Tensors, module_tensors
from .motion_adapter import from_motion_adapter
from .motion_lora import is_motion_lora

ADAPTER_TENSORS, ADAPTER_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
VARIANTS = ADAPTER_TENSORS, "diffusion_pytorch_model.fp16.safetensors"


def read_any_motion_file(path: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Read as `read_motion_file` does, a safetensors file of any kind.

    Raises:
        FileNotFoundError, MotionFileError: each kind of damage or mismatch in its own sentence.
    """
    with opened(path) as (file, header):
        if "stillmotion" in header.metadata or not any(map(MODULE.search, header.tensors)):
            return read_opened(path, file, header)
        with naming(path):
            return _understood(_read_modules(path, file, header))


def read_motion_lora(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a motion LoRA of AnimateDiff; what they change is seen beside a motion module.

    Raises:
        FileNotFoundError, MotionFileError: each kind of damage or mismatch in its own sentence.
    """
    with opened(path, " --to motion-lora") as (file, header):
        if not is_motion_lora(module_tensors({name: name for name in header.tensors})):
            kind = kind_of_names(header.tensors) or "something else"
            raise MotionFileError(f"{path} is no motion LoRA of AnimateDiff: it is {kind}.")
        check_numbers(path, header.kinds)
        tensors = dict(tensors_in(file, header))
        check_finite(path, tensors)
        return tensors


def read_motion_adapter(folder: Path) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the adapter in a folder that diffusers wrote. Errors as in `read_any_motion_file`."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no MotionAdapter as diffusers saves one: it holds no {ADAPTER_CONFIG}.")
    try:
        config = read_config(folder / ADAPTER_CONFIG)
    except ValueError as error:
        raise MotionFileError(f"{folder} cannot be used: {error}; copy the folder again.") from None
    if config.get("_class_name") != "MotionAdapter":
        raise MotionFileError(f"{folder / ADAPTER_CONFIG} does not describe a MotionAdapter.")
    tensors = next((folder / name for name in VARIANTS if (folder / name).is_file()), folder / ADAPTER_TENSORS)
    with opened(tensors) as (file, header), naming(folder):
        return _understood(_read_modules(tensors, file, header), config)


def explained(path: Path, tensors: Tensors) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return `from_tensors`, whose errors name the file, after a check of the numbers."""
    with naming(path):
        modules = _modules(tensors, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        check_numbers(path, {name: kind_of(tensor) for name, tensor in modules.items()})
        check_finite(path, modules)
        return _understood(modules)


def from_tensors(tensors: Tensors) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the inflation that these tensors of a motion module are; the rest of a checkpoint is not looked at.

    Raises:
        ValueError: they are none of a known kind, or damaged.
    """
    return _understood(_modules(tensors, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let what is wrong be said with the name of the file."""
    try:
        yield
    except MotionFileError:
        raise
    except ValueError as error:
        raise MotionFileError(f"{path} cannot be used: {error}.") from None


def kind_of(tensor: Tensor) -> str:
    """Return a tensor's kind of number, by safetensors' name where it has one."""
    return NAMES.get(tensor.dtype, str(tensor.dtype))


def _read_modules(path: Path, file: BinaryIO, header: Header) -> dict[str, Tensor]:
    names = _modules({name: name for name in header.tensors}, header.shapes)
    check_numbers(path, {name: header.tensors[name].kind for name in names.values()})
    shorter, tensors = {name: short for short, name in names.items()}, {}
    for name, tensor in tensors_in(file, header, names.values()):
        check_finite(path, {name: tensor})
        tensors[shorter[name]] = tensor
    return tensors


def _modules(tensors: Mapping[str, T], shapes: Shapes) -> dict[str, T]:
    """Return `module_tensors`, after a check that they are motion modules and nothing that goes with other parts."""
    modules = module_tensors(tensors)
    _check_whole(shapes)
    if not modules:
        raise ValueError(_why_none(tensors))
    if is_motion_lora(modules):
        raise ValueError(f"it is {MOTION_LORA}")
    return modules


def _understood(modules: dict[str, Tensor], config: dict | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the inflation of motion modules, which are taken out of `modules`."""
    if is_animatediff(modules):
        return from_animatediff(modules, modules.pop)
    return from_motion_adapter(modules, config, modules.pop)


def _why_none(names: Collection[str]) -> str:
    if is_higen(names):
        return "it is HiGen's release, image model and motion in one: `python -m trainer convert` makes two files of it"
    if is_of_vgen(names):
        return "it is a network of VGen's (I2VGen-XL, for example) other than HiGen's, the only one that can be used"
    none, kind = (
        "it holds no motion modules, as AnimateDiff's files and diffusers' MotionAdapter do",
        kind_of_names(names),
    )
    return f"{none}: it is {kind}" if kind else none


def _check_whole(shapes: Shapes) -> None:
    """Refuse modules that were trained together with something else: without it they make worse clips."""
    for name, shape in shapes.items():
        if "img_encoder." in name:
            raise ValueError("it holds an image encoder (AnimateLCM-I2V's); only text-to-video modules can be used")
        if MODULE.search(name) and "controlnet" in name:
            raise ValueError("it is a SparseCtrl, a ControlNet for AnimateDiff, for the nodes of its own pack")
        if name.endswith("conv_in.weight") and len(shape) == 4 and shape[1] != 4:
            raise ValueError(f"its U-Net takes {shape[1]} channels (as PIA's); only modules for 4 can be used")
