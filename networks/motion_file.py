"""Motion files: safetensors that hold one inflation and say how to use it. Checked whole before a tensor is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .atomic import replacing, write_durably
from .inflation import Inflation
from .json_text import parse_json
from .motion_info import MotionInfo, info_from
from .recognise import NEEDED, is_pickled, kind_of_bytes, kind_of_names
from .shown import shown
from .sites import Structure
from .tensor_file import (
    LARGEST_HEADER,
    Header,
    bytes_of,
    header_length,
    is_finite,
    read_header,
    tensors_in,
    write_tensors,
)
from .upgrade import upgraded_description, upgraded_name, upgraded_tensors

__all__ = ["LARGEST_HEADER", "MotionFileError", "MotionInfo"]

FORMAT_VERSION = 2
READABLE = 1, FORMAT_VERSION

KINDS_OF_NUMBER = ("F32", "F16", "BF16")


class MotionFileError(ValueError):
    """A file that cannot be used; the message says which file, why, and what to do."""

    def __init__(self, message: str):
        super().__init__(shown(message))  # names and values in it are the file's


def write_motion_file(path: Path, tensors: dict[str, Tensor], info: MotionInfo) -> None:
    """Write a motion file and read it back before it takes its place: a crash leaves an older file as it was.

    Raises:
        MotionFileError: there is a NaN or an infinity in it.
        OSError: the disk is full or the folder cannot be written.
    """
    check_finite(path, tensors)
    metadata = _metadata(tensors, info)
    with replacing(Path(path)) as beside:
        write_durably(beside, lambda file: write_tensors(file, tensors, metadata))
        with opened(beside) as (file, header):
            read_opened(beside, file, header, keep=False)


def _metadata(tensors: dict[str, Tensor], info: MotionInfo) -> dict[str, str]:
    own = {
        "format_version": FORMAT_VERSION,
        "base_family": info.family,
        **asdict(info),
        "config": info.config.to_json(),
    }
    if info.over is None:
        del own["over"]  # the file is then as it was before there was such a thing
    digest = _digest(own)
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{info.family}/stillmotion",
        "modelspec.implementation": "stillmotion",
        "modelspec.title": shown(", ".join(info.captions[:1])) or "motion",
        "modelspec.resolution": f"{info.width}x{info.height}",
        "stillmotion": json.dumps({**own, "sha256": digest.hexdigest()}),
    }


def _digest(description: dict):
    """Begin the hash of all that the file says of its tensors, and of these in the order of their names."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode())


def _add(digest, name: str, tensor: Tensor) -> None:
    digest.update(name.encode())
    digest.update(bytes_of(tensor))


def read_motion_info(path: Path, fits: Structure | None = None) -> MotionInfo:
    """Return what the file says of itself, after a check of its names and shapes; no tensor is read.

    Args:
        fits: the U-Net that it is to be attached to.

    Raises:
        FileNotFoundError, MotionFileError: each kind of damage or mismatch in its own sentence.
    """
    with opened(path) as (_, header):
        return _checked(path, header, fits)[0]


def read_motion_file(path: Path, fits: Structure | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return the file's description and its tensors, on the CPU. Arguments and errors as in `read_motion_info`."""
    with opened(path) as (file, header):
        return read_opened(path, file, header, fits)


def read_opened(
    path: Path, file: BinaryIO, header: Header, fits: Structure | None = None, keep: bool = True
) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Read as `read_motion_file` does, of a file that `opened` gave.

    Each tensor is looked at and hashed as it comes off the disk. It is not mapped: a mapped file could change under the
    tensors, and Windows would not let it be replaced.

    Args:
        keep: the tensors; without, they are read and checked one after another.
    """
    info, own = _checked(path, header, fits)
    said, tensors = own.pop("sha256", None), {}
    digest = _digest(own)
    for name, tensor in tensors_in(file, header):
        check_finite(path, {name: tensor})
        _add(digest, name, tensor)
        if keep:
            tensors[name] = tensor
    if said != digest.hexdigest():
        raise MotionFileError(f"{path} was changed after it was written (its checksum differs); copy it again.")
    return info, upgraded_tensors(tensors) if own["format_version"] == 1 else tensors


def _checked(path: Path, header: Header, fits: Structure | None) -> tuple[MotionInfo, dict]:
    """Return the description in present terms and as it stands in the file, after a check of all but the tensors."""
    own, shapes = _own_metadata(path, header), header.shapes
    check_numbers(path, header.kinds)
    now = own
    if own["format_version"] == 1:
        now, shapes = upgraded_description(own), {upgraded_name(n): shape for n, shape in header.shapes.items()}
        if len(shapes) < len(header.tensors):
            raise MotionFileError(f"{path} holds a tensor under its name of format 1 and of format 2: train it again.")
    try:
        info = info_from(now)
    except ValueError as error:
        raise MotionFileError(f"{path} cannot be used: {error}.") from None
    if fits is not None:
        check_fits(path, info, fits)
    _check_shapes(path, info, shapes)
    return info, own


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not is_finite(tensor):
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


@contextmanager
def opened(path: Path, made_by: str = "") -> Iterator[tuple[BinaryIO, Header]]:
    """Open a safetensors file, told by its bytes and not by its name, and give it with its header.

    Args:
        made_by: for errors, what `convert` is told beside the names of files to make such a file of a pickled one.

    Raises:
        FileNotFoundError, MotionFileError: there is none, or it is another kind of file, or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(shown(f"There is no motion file {path}."))
    with open(path, "rb") as file:
        start = file.read(NEEDED)
        if header_length(start) is None:
            raise MotionFileError(f"{path} {_other_kind(Path(path), start, made_by)}")
        try:
            header = read_header(file)
        except ValueError as error:
            raise MotionFileError(f"{path} is damaged or cut short ({error}); copy or train it again.") from None
        yield file, header


def _other_kind(path: Path, start: bytes, made_by: str) -> str:
    if is_pickled(start):
        made = path.with_suffix(".safetensors")
        made = made.with_stem(f"{path.stem}-converted") if made == path else made
        return (
            "is a pickled file, which can run code when it is opened; motion files are safetensors:"
            f" `python -m trainer convert --input {_quoted(path)} --output {_quoted(made)}{made_by}` makes one of it."
        )
    if kind := kind_of_bytes(start):
        return f"is not a safetensors file but {kind}."
    if len(start) < NEEDED:
        return f"is not a safetensors file: it has {len(start)} bytes."
    length = int.from_bytes(start[:8], "little")
    return f"is not a safetensors file: its header would be {length} bytes long."


def _quoted(path: Path) -> str:
    return f'"{path}"' if " " in str(path) else str(path)


def check_numbers(path: Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in KINDS_OF_NUMBER:
            raise MotionFileError(f"{path} holds {name} as {kind}; allowed are {', '.join(KINDS_OF_NUMBER)}.")


def _own_metadata(path: Path, header: Header) -> dict:
    if "stillmotion" not in header.metadata:
        kind = kind_of_names(header.tensors)
        why = f"it is {kind}" if kind else "it does not say how it was made"
        raise MotionFileError(f"{path} is a safetensors file, but not a motion file: {why}.")
    try:
        own = parse_json(header.metadata["stillmotion"])
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
