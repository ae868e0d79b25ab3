"""Safetensors files written and read one tensor after another: a file may be nearly as large as the memory.

The library's own functions make a second copy of all tensors, or keep the file mapped, and report none of the disk's
errors as such.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

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


class Sink(Protocol):
    """What can be written to."""

    def write(self, data, /) -> object: ...


def write_tensors(file: Sink, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raise the disk's own OSError.

    Args:
        tensors: on any device and of any strides; they are made contiguous one by one.
    """
    names = sorted(tensors, key=lambda name: (PLACE[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
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


def tensors_in(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file whose header is known to be sound, by their names, each in memory of its own.

    Raises:
        OSError: the file was cut short while it was read.
    """
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            tensor = torch.empty(prod(entry["shape"]), dtype=KINDS[entry["dtype"]])
            file.seek(8 + length + entry["data_offsets"][0])
            if file.readinto(bytes_of(tensor)) != tensor.nbytes:
                raise OSError(f"{path} was cut short while it was read; copy it again.")
            yield name, tensor.reshape(entry["shape"])
