"""Requests to a running training: Ctrl-C, a SIGTERM, or a file called `save` or `save_quit` in its folder."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

log = logging.getLogger("stillmotion")

NOTHING, SAVE, STOP = 0, 1, 2
FILES = {"save": SAVE, "save_quit": STOP}


class Requests:
    """Wishes that the loop answers after its step: files, and the first Ctrl-C; a second one interrupts at once.

    Used as a context manager; outside of the main thread, which alone may handle signals, only files count.
    """

    def __init__(self, folder: Path):
        self.folder, self.interrupted, self._before = folder, False, {}

    def __enter__(self) -> Requests:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _on_signal(self, number: int, _frame) -> None:
        self.interrupted = True
        self._restore()
        log.warning("%s: saving after this step; once more stops at once.", signal.Signals(number).name)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def pending(self) -> int:
        """Return NOTHING, SAVE or STOP."""
        found = [wish for name, wish in FILES.items() if (self.folder / name).exists()]
        return max([STOP if self.interrupted else NOTHING, *found])

    def done(self, wish: int) -> None:
        """Take away the files that were answered; every process may try."""
        for name, asked in FILES.items():
            if asked <= wish:
                (self.folder / name).unlink(missing_ok=True)
