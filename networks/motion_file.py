"""Motion files: safetensors that hold one inflation and say how to use it. Checked whole before a tensor is used."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from .atomic import replacing, write_durably
from .config import InflationConfig
from .inflation import Inflation
from .sites import Structure
from .tensor_file import bytes_of, tensors_in, write_tensors
from .upgrade import upgraded_description, upgraded_name, upgraded_tensors

FORMAT_VERSION = 2
READABLE = 1, FORMAT_VERSION
LARGEST_HEADER = 16 * 2**20  # an SDXL-sized inflation needs 0.5 MB; a huge header is an attack or another file


KINDS_OF_NUMBER = ("F32", "F16", "BF16")

ADDED_LATER = {"positions", "zero_snr", "factors"}
"""Of the description: files of before there was such a thing have the default."""


class MotionFileError(ValueError):
    """A file that cannot be used; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class MotionInfo:
    """The description in a motion file.

    `schedule` and `prediction` are those it was trained on, in diffusers' names. `frames`, `fps`, `width` and `height`
    (pixels) are those of its training clips. `captions` are the distinct training captions, `options` the resolved
    options of the command that made it, `versions` of the libraries that did. `positions` is for how many frames other
    programs' form of the file stores positions; None: it stores none. `zero_snr`: the schedule is rescaled to end in
    noise alone (Lin et al. 2024, arXiv 2305.08891). `factors`: of the training clips, "motion" and "appearance", each
    the 5th, 50th and 95th percentile.
    """

    config: InflationConfig
    structure: Structure
    schedule: str = "scaled_linear"
    prediction: str = "epsilon"
    frames: int = 16
    fps: float = 8.0
    width: int = 512
    height: int = 512
    captions: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    positions: int | None = 32
    zero_snr: bool = False
    factors: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("frames", "width", "height", "fps", *(["positions"] if self.positions is not None else [])):
            value = getattr(self, name)
            if type(value) not in ((int, float) if name == "fps" else (int,)) or not 0 < value < 1e6:
                raise ValueError(f"its {name} is {value!r}; it must be a number above 0")
        kinds = {"schedule": str, "prediction": str, "captions": tuple, "options": dict, "versions": dict}
        kinds |= {"zero_snr": bool, "factors": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"its {name} is {getattr(self, name)!r}, which is no {kind.__name__}")
        for name, values in self.factors.items():
            if not is_range(values):
                raise ValueError(f"its factors of {name} are {values!r}; they must be three numbers")

    @property
    def family(self) -> str:
        return self.structure.family


def is_range(values: object) -> bool:
    """Tell whether these are three finite numbers: a factor's percentiles."""
    numbers = list(values) if isinstance(values, list | tuple) else []
    return len(numbers) == 3 and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)


def write_motion_file(path: Path, tensors: dict[str, Tensor], info: MotionInfo) -> None:
    """Write a motion file and read it back before it takes its place: a crash leaves an older file as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    check_finite(path, tensors)
    metadata = _metadata(tensors, info)
    with replacing(Path(path)) as beside:
        write_durably(beside, lambda file: write_tensors(file, tensors, metadata))
        read_motion_info(beside)
        _check_hash(beside, tensors_in(beside))


def _metadata(tensors: dict[str, Tensor], info: MotionInfo) -> dict[str, str]:
    own = {
        "format_version": FORMAT_VERSION,
        "base_family": info.family,
        **asdict(info),
        "config": info.config.to_json(),
    }
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{info.family}/stillmotion",
        "modelspec.implementation": "stillmotion",
        "modelspec.title": ", ".join(info.captions[:1]) or "motion",
        "modelspec.resolution": f"{info.width}x{info.height}",
        "stillmotion": json.dumps({**own, "sha256": _hash(sorted(tensors.items()), own)}),
    }


def _hash(tensors: Iterable[tuple[str, Tensor]], description: dict) -> str:
    """Hash the tensors, in the order of their names, and all that the file says of them."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def read_motion_info(path: Path, fits: Structure | None = None) -> MotionInfo:
    """Return what the file says of itself, after a check of its names and shapes; no tensor is read.

    Args:
        fits: the U-Net that it is to be attached to.

    Raises:
        FileNotFoundError, MotionFileError: each kind of damage or mismatch in its own sentence.
    """
    shapes, metadata = _read_header(Path(path))
    own = _own_metadata(path, metadata)
    if own["format_version"] == 1:
        own, given = upgraded_description(own), shapes
        shapes = {upgraded_name(name): shape for name, shape in given.items()}
        if len(shapes) < len(given):
            raise MotionFileError(f"{path} holds a tensor under its name of format 1 and of format 2: train it again.")
    info = _read_info(path, own)
    if fits is not None:
        check_fits(path, info, fits)
    _check_shapes(path, info, shapes)
    return info


def read_motion_file(path: Path, fits: Structure | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the file's description and its tensors, on the CPU. Arguments and errors as in `read_motion_info`."""
    info = read_motion_info(path, fits)
    # read, not mapped: a mapped file could change under the tensors, and Windows would not let it be replaced
    tensors = dict(tensors_in(Path(path)))
    check_finite(path, tensors)
    version = _check_hash(path, tensors.items())
    return info, upgraded_tensors(tensors) if version == 1 else tensors


def _check_hash(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Return the version of the file's format, after a check that it holds these tensors as they were written."""
    own = _own_metadata(path, _read_header(Path(path))[1])
    if own.pop("sha256", None) != _hash(tensors, own):
        raise MotionFileError(f"{path} was changed after it was written (its checksum differs); copy it again.")
    return own["format_version"]


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise MotionFileError(f"{path} holds NaN or infinity in {name}; the training that made it diverged.")


def check_fits(path: Path, info: MotionInfo, structure: Structure) -> None:
    """Raise MotionFileError where a motion file was made for another U-Net than this one."""
    if info.family != structure.family:
        raise MotionFileError(
            f"{path} was made for {info.family} models; this model is {structure.family}: load a checkpoint of the"
            " family that it was made for."
        )
    if info.structure != structure:
        raise MotionFileError(
            f"{path} was made for a U-Net with other layers ({_layers(info.structure)}) than this model's"
            f" ({_layers(structure)}): load the base model that it was trained on."
        )


def _layers(structure: Structure) -> str:
    return ", ".join(f"{level.width} channels with depths {list(level.down)}" for level in structure.levels)


def _read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no motion file {path}.")
    check_container(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            check_numbers(path, {name: part.get_dtype() for name, part in slices.items()})
            return {name: tuple(part.get_shape()) for name, part in slices.items()}, file.metadata() or {}
    except SafetensorError as error:
        raise MotionFileError(f"{path} is damaged or cut short ({error}); copy or train it again.") from None


def check_container(path: Path) -> None:
    """Judge by the first eight bytes, the length of a safetensors file's header; of other files they are anything."""
    with open(path, "rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if 2 <= length <= LARGEST_HEADER:
        return
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise MotionFileError(
            f"{path} is a pickled file, which can run code when it is opened; motion files are safetensors:"
            f" `python -m trainer convert --input {path} --output {path.with_suffix('.safetensors')}` makes one of it."
        )
    raise MotionFileError(f"{path} is not a safetensors file: its header would be {length} bytes long.")


def check_numbers(path: Path, kinds: dict[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in KINDS_OF_NUMBER:
            raise MotionFileError(f"{path} holds {name} as {kind}; allowed are {', '.join(KINDS_OF_NUMBER)}.")


def _read_info(path: Path, own: dict) -> MotionInfo:
    same = {f.name for f in fields(MotionInfo)} - {"config", "structure", "captions"}
    same -= ADDED_LATER - own.keys()
    try:
        if not isinstance(own["captions"], list):
            raise ValueError(f"its captions are {own['captions']!r}, which is no list")
        return MotionInfo(
            config=InflationConfig.from_json(own["config"]),
            structure=Structure.from_json(own["structure"]),
            captions=tuple(own["captions"]),
            **{name: own[name] for name in same},
        )
    except KeyError as error:
        raise MotionFileError(f"{path} cannot be used: its description lacks {error}.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise MotionFileError(f"{path} cannot be used: {error}.") from None


def _own_metadata(path: Path, metadata: dict[str, str]) -> dict:
    if "stillmotion" not in metadata:
        raise MotionFileError(f"{path} is a safetensors file, but not a motion file: it does not say how it was made.")
    try:
        own = json.loads(metadata["stillmotion"])
        version = own["format_version"]
    except (ValueError, KeyError, TypeError):
        raise MotionFileError(f"{path} has a description that cannot be read; copy or train it again.") from None
    if type(version) is not int or version not in READABLE:
        raise MotionFileError(
            f"{path} has format version {version}; this Stillmotion reads version {FORMAT_VERSION}: update it."
        )
    return own


def _check_shapes(path: Path, info: MotionInfo, shapes: dict[str, tuple[int, ...]]) -> None:
    try:
        with torch.device("meta"):
            inflation = Inflation(info.config, info.structure)
    except ValueError as error:
        raise MotionFileError(f"{path} cannot be used: {error}.") from None
    expected = {name: tuple(tensor.shape) for name, tensor in inflation.state_dict().items()}
    if missing := sorted(expected.keys() - shapes.keys()):
        raise MotionFileError(f"{path} lacks {len(missing)} of its {len(expected)} tensors, first {missing[0]}.")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise MotionFileError(f"{path} holds {extra[0]}, which its description does not name.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise MotionFileError(f"{path} holds {name} with shape {shapes[name]}; it should be {shape}.")
