"""One run in a folder at a time: two would mix their logs and delete each other's unfinished files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("stillmotion")

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder meanwhile; the system lets go of it however this process ends.

    Of the processes of one launch the first locks for all.

    Raises:
        ValueError: another run is in it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "ab") as file:
        if not _taken(file.fileno()):
            raise ValueError(
                f"--output {folder} is in use by another run: wait until it is done, or choose another --output"
            )
        yield


def check_unlocked(folder: Path) -> None:
    """Raise ValueError where another run is in a folder: commands ask before they read their clips."""
    if (folder / LOCK).is_file():
        with locked(folder):
            pass


def _taken(handle: int) -> bool:
    """Tell whether the file is this process's now; where a disk knows no locks, it is said and taken for free."""
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("This disk cannot keep other runs out of the folder (%s); start none in it meanwhile.", error)
    return True


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
