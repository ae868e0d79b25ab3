"""Files that are whole or not there: written beside their place, on the disk, read back by the caller, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path`; what was written there takes its place at the end, or is removed on an error.

    Raises:
        OSError: with one sentence, where the disk is full; an older file of the name is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # other processes may be writing the same file
    try:
        yield beside
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise told_if_full(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file and wait until the disk has it. Raise the disk's own OSError."""
    with open(path, "wb") as file:
        recorder = Recorder(file)
        try:
            write(recorder)
        except RuntimeError as error:
            raise (recorder.error or error) from None
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Put a file of these bytes in the place of what is there."""
    with replacing(path) as beside:
        write_durably(beside, lambda file: file.write(data))


class Recorder:
    """A file that remembers why it could not be written: torch reports its own error instead of the disk's."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure; Windows cannot open folders and needs none of it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def told_if_full(error: OSError, path: Path) -> OSError:
    """Return an error that says what to do where the disk is full, else the error itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = shutil.disk_usage(path.parent).free / 2**20
    return OSError(
        f"The disk is full ({free:.0f} MB free): {path} could not be saved. Older files are whole: make room, then"
        " start the command again, a training with --resume."
    )


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Delete what is left where a process was killed while it wrote a file of this name, see `replacing`."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)
