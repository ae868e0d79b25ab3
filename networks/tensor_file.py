"""Safetensors files written and read one tensor after another: a file may be nearly as large as the memory.

The library's own functions make a second copy of all tensors, or keep the file mapped, report none of the disk's
errors as such, write metadata in another order each time, and take tensors without numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

from .json_text import parse_json

KINDS = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of types, in the order in which the library puts them into a file: the widest first, so that every
tensor is aligned."""

NAMES = {dtype: name for name, dtype in KINDS.items()}
PLACE = {dtype: place for place, dtype in enumerate(NAMES)}
HEADER_MULTIPLE = 8
LARGEST_HEADER = 16 * 2**20  # an SDXL-sized inflation needs 0.5 MB; a huge header is an attack or another file
MOST_AXES = 8


class Sink(Protocol):
    """What can be written to."""

    def write(self, data, /) -> object: ...


class Entry(NamedTuple):
    """A tensor in a header: `kind` by the format's name, and its bytes, counted from the beginning of the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    tensors: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}

    @property
    def kinds(self) -> dict[str, str]:
        return {name: entry.kind for name, entry in self.tensors.items()}


def write_tensors(file: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, of equal content equal bytes. Raise the disk's own OSError.

    Args:
        tensors: on any device and of any strides; they are made contiguous one by one.
    """
    names = sorted(tensors, key=lambda name: (PLACE[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_MULTIPLE)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(bytes_of(tensors[name]))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, its own where it is contiguous and on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 of names, shapes and numbers, these in half precision: a file in float32 and its copy in half
    precision are one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(bytes_of(tensor.half()))
    return digest.hexdigest()


def header_length(start: bytes) -> int | None:
    """Return how long the header is of a file that begins so; None where it is no safetensors file."""
    length = int.from_bytes(start[:8], "little")
    return length if len(start) >= 8 and 2 <= length <= LARGEST_HEADER else None


def read_header(file: BinaryIO) -> Header:
    """Read the header of a file that begins as safetensors do, held against the file's size before anything is made.

    Raises:
        ValueError: in a phrase, what is wrong with it.
    """
    file.seek(0)
    size, length = os.fstat(file.fileno()).st_size, header_length(file.read(8))
    if length is None or 8 + length > size:
        raise ValueError(f"it ends within its header, after {size} bytes")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    entries = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
    _check_places(entries, 8 + length, size)
    return Header(entries, metadata)


def _entry(name: str, entry: object, data: int) -> Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"what it says of {name} is no description of a tensor")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = all(isinstance(numbers, list) and all(type(n) is int for n in numbers) for numbers in (shape, offsets))
    if not isinstance(kind, str) or not whole or len(offsets) != 2 or len(shape) > MOST_AXES:
        raise ValueError(f"what it says of {name} is no description of a tensor")
    if any(n < 1 for n in shape):
        raise ValueError(f"it holds {name} with the shape {tuple(shape)}, in which there is no number")
    start, end = offsets
    if kind in KINDS and end - start != prod(shape) * KINDS[kind].itemsize:
        raise ValueError(f"it has {end - start} bytes for {name}, which has the shape {tuple(shape)} of {kind}")
    return Entry(kind, tuple(shape), data + start, data + end)


def _check_places(entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Refuse tensors that overlap, leave holes or lie outside of the file."""
    end = data
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != end or entry.end < entry.start:
            raise ValueError(f"it has {name} at another place than behind the tensor before")
        end = entry.end
    if end != size:
        raise ValueError(f"it has {size} bytes, and its tensors end after {end}")


def tensors_in(file: BinaryIO, header: Header, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file with this header, by their names, each in memory of its own.

    Args:
        names: of those that are wanted, all by default.

    Raises:
        ValueError: numbers of a kind that torch does not have.
        OSError: the file was cut short while it was read.
    """
    for name in sorted(header.tensors if names is None else names):
        entry = header.tensors[name]
        if entry.kind not in KINDS:
            raise ValueError(f"it holds {name} as {entry.kind}, a kind of number that is not known here")
        tensor = torch.empty(prod(entry.shape), dtype=KINDS[entry.kind])
        file.seek(entry.start)
        if file.readinto(bytes_of(tensor)) != tensor.nbytes:
            raise OSError(f"{file.name} was cut short while it was read; copy it again.")
        yield name, tensor.reshape(entry.shape)


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file, as `tensors_in` does. Raise ValueError where it is damaged, too."""
    with open(path, "rb") as file:
        yield from tensors_in(file, read_header(file))


def is_finite(tensor: Tensor) -> bool:
    """Tell whether there is no NaN and no infinity in a tensor of floats, at a fraction of what `isfinite` costs.

    Smallest and largest number are NaN where there is one, and are found in vectors of half precision as it is.
    """
    return all(end.isfinite().item() for end in torch.aminmax(tensor.detach())) if tensor.numel() else True
