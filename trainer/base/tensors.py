"""The tensors of a file of unknown origin, which is judged by its bytes, and its sizes before they are believed."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...networks.recognise import NEEDED, is_pickled, kind_of_bytes
from ...networks.shown import shown
from ...networks.tensor_file import KINDS, header_length, read_header, tensors_in

Tensors = dict[str, Tensor]

MENDED = 2, 10
"""The first torch whose reader for tensors only runs no code of the file's: CVE-2025-32434 was mended in 2.6 and
CVE-2026-24747 (GHSA-63cw-57p8-fm3p) in 2.10."""

STRANGE = (
    *(SafetensorError, pickle.PickleError, zipfile.BadZipFile, struct.error, OSError, EOFError, MemoryError),
    *(RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, ImportError),
)
"""What libraries raise, beside ValueError, on bytes or settings that make no sense: torch's unpickler runs them as a
program."""


@contextmanager
def one_sentence(what: str, errors: tuple[type[Exception], ...] = (*STRANGE, ValueError)) -> Iterator[None]:
    """Turn a library's error into a ValueError that begins with `what` and is one short line."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{what} ({told(error)})") from error


def told(error: Exception, most: int = 200) -> str:
    """Return an error's text in one line, or its name where it has none."""
    return shown(" ".join(str(error).split()) or type(error).__name__, most)


def read_tensors(path: Path) -> Tensors:
    """Return every tensor of a checkpoint file, mapped; a pickled one is opened by torch's reader for tensors only.

    Raises:
        ValueError: the file is damaged, or holds pickled objects that are no tensors, or is of another kind.
    """

    def read_safetensors(file: BinaryIO) -> Tensors:
        read_header(file)
        return load_file(path)

    return _read(path, read_safetensors, _read_pickled)


def read_outlines(path: Path) -> Tensors:
    """Return the tensors of a checkpoint file with their shapes and types and without data, on the device "meta".

    A look at a header, however large the file is. Single numbers are read from safetensors, since they say how a model
    is to be run.

    Raises:
        ValueError: as of `read_tensors`, but for damage behind the header; also of pickles from before torch 1.6.
    """
    return _read(path, _safetensors_outlines, _pickled_outlines)


def _read(
    path: Path, read_safetensors: Callable[[BinaryIO], Tensors], read_pickled: Callable[[Path], Tensors]
) -> Tensors:
    """Read a file by the way that its bytes ask for."""
    if not path.is_file():
        raise ValueError("it cannot be read: it is no file")
    with open(path, "rb") as file:
        start = file.read(NEEDED)
        if header_length(start) is not None:
            with one_sentence("it cannot be read, for it is damaged"):
                return read_safetensors(file)
    if is_pickled(start):
        return read_pickled(path)
    kind = kind_of_bytes(start)
    raise ValueError(f"it cannot be read: it is {kind}" if kind else f"it cannot be read: it begins with {start[:8]!r}")


def _safetensors_outlines(file: BinaryIO) -> Tensors:
    header = read_header(file)
    numbers = [name for name, entry in header.tensors.items() if prod(entry.shape) == 1]
    outlines = {
        name: torch.empty(entry.shape, dtype=KINDS.get(entry.kind), device="meta")
        for name, entry in header.tensors.items()
    }
    return outlines | dict(tensors_in(file, header, numbers))


def is_pickled_file(path: Path) -> bool:
    """Tell by its bytes whether a file is pickled, whatever its name says."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(NEEDED)
    return header_length(start) is None and is_pickled(start)


def _read_pickled(path: Path) -> Tensors:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    # mapped, as safetensors are: what is not looked at takes no memory; torch's older files cannot be
    tensors = _tensors_of(_unpickled(path, map_location="cpu", mmap=is_archive))
    _check_sizes(tensors, path.stat().st_size)
    return tensors


def _pickled_outlines(path: Path) -> Tensors:
    if not zipfile.is_zipfile(path):  # torch would read all of it
        raise ValueError("it cannot be looked into: it is pickled as torch did before 1.6, or damaged")
    return _tensors_of(_unpickled(path, map_location="meta"))


def _unpickled(path: Path, **how) -> object:
    """Open a file by torch's reader for tensors only."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MENDED:
        raise ValueError(
            f"it is pickled, and torch {torch.__version__} may run what is in such files (CVE-2026-24747): install"
            f" torch {'.'.join(map(str, MENDED))} or newer, or give a .safetensors file"
        )
    try:
        with one_sentence("it cannot be read, for it is damaged or no checkpoint"):
            return torch.load(path, weights_only=True, **how)
    except ValueError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(
                "it cannot be read: it is damaged, or holds code beside tensors and is not to be trusted"
            ) from error
        raise


def _check_archive(path: Path) -> None:
    """Refuse an archive that is not as torch writes it: uncompressed, no larger than itself, and undamaged."""
    with one_sentence("it cannot be read, for it is damaged", STRANGE), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not any(entry.filename.endswith("data.pkl") for entry in entries):
            raise ValueError("it cannot be read: it is a zip archive without a checkpoint in it: unpack it")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it cannot be read: its archive is compressed, which torch's never are")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it cannot be read: its archive claims to hold more bytes than it has")
        if bad := archive.testzip():
            raise ValueError(f"it is damaged: the checksum of {bad} differs: copy or download it again")


def _tensors_of(loaded: object) -> Tensors:
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError("it cannot be read: it holds no tensors by their names")
    return {name: tensor for name, tensor in inner.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _check_sizes(tensors: Tensors, size: int) -> None:
    """Refuse tensors that are not plain numbers, each of them in the file: a short file can describe endless ones.

    Args:
        size: of the file, in bytes.
    """
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"it holds {name} in a form that is no plain tensor ({tensor.layout}, {tensor.device})")
        if not tensor.numel():
            raise ValueError(f"it holds {name} with the shape {tuple(tensor.shape)}, in which there is no number")
        total += tensor.nbytes
        if tensor.nbytes > tensor.untyped_storage().nbytes() or tensor.untyped_storage().nbytes() > size:
            raise ValueError(f"it claims {tensor.nbytes} bytes for {name}, and has {size} in all")
    if total > MOST_SHARED * size:
        raise ValueError(f"it claims {total} bytes for its tensors, and has {size}")


MOST_SHARED = 4
"""How often the same bytes may be tensors of several names: those that are tied are there twice."""
