"""Work that takes long: a bar on a terminal that goes on moving while a single step takes minutes, a few lines in a log
file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ...networks.shown import shown

T = TypeVar("T")

log = logging.getLogger("stillmotion")

REDRAWN = 1.0
"""Seconds from one look of a bar on a terminal to the next."""

FIRST_LINE, MORE_RARELY, RAREST = 10.0, 1.5, 600.0
"""Elsewhere: seconds until the first line, by how much longer each pause is than the one before, and the longest."""

LONGEST = 60
"""Letters of what is being worked on, which may hold the name of a file: the bar itself needs room."""

COUNTED = "{desc}: {n_fmt} of {total_fmt} {unit}s in {elapsed}, about {remaining} left{postfix}"
WITHOUT_END = "{desc}: {n_fmt} {unit}s in {elapsed}"
UNCOUNTED = "{desc}: {elapsed}"


class Nowhere:
    """What a bar is drawn on where nobody would see it."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


@contextmanager
def working(
    what: str,
    total: int | None = None,
    unit: str | None = None,
    *,
    initial: int = 0,
    leave: bool = False,
    hidden: bool = False,
) -> Iterator[tqdm]:
    """Show that something is being worked on, with how much is done, how fast, and when it will be. `update()` what is
    yielded after each unit.

    Args:
        total: number of units, None where nobody knows.
        unit: one of what is counted; None: nothing is, and there is but the time that has gone by.
        initial: units that an earlier run has done.
        leave: the last look of the bar, or a last line, stays; others come only where the work takes a while.
        hidden: say nothing, as all processes but the first do.
    """
    hidden = hidden or os.environ.get("RANK", "0") != "0"
    on_terminal = sys.stderr.isatty()
    bar = tqdm(
        desc=shown(what, LONGEST),
        total=total,
        unit=unit or "",
        initial=initial,
        leave=leave,
        delay=0 if leave else REDRAWN,
        disable=hidden,
        file=None if on_terminal else Nowhere(),
        bar_format=None if unit else UNCOUNTED,
        dynamic_ncols=True,
    )
    done = Event()
    ticker = Thread(target=_redraw if on_terminal else _tell, args=(bar, done), daemon=True)
    with bar, logging_redirect_tqdm() if on_terminal else nullcontext():
        if not hidden:
            ticker.start()
        try:
            yield bar
        finally:
            done.set()
            if not hidden:
                ticker.join()
                if leave and not on_terminal:
                    log.info("%s", line_of(bar))


def counted(items: Iterable[T], bar: tqdm) -> Iterator[T]:
    """Yield items, and count each when the next one is asked for."""
    for item in items:
        yield item
        bar.update()


def _redraw(bar: tqdm, done: Event) -> None:
    while not done.wait(REDRAWN):
        bar.delay = 0  # it is seen from now on, and has to be taken away in the end
        bar.refresh()


def _tell(bar: tqdm, done: Event) -> None:
    pause = FIRST_LINE
    while not done.wait(pause):
        log.info("%s", line_of(bar))
        pause = min(pause * MORE_RARELY, RAREST)


def line_of(bar: tqdm) -> str:
    """Return how far a bar is, as a line of a log."""
    form = UNCOUNTED if not bar.unit else WITHOUT_END if bar.total is None else COUNTED
    return tqdm.format_meter(**{**bar.format_dict, "bar_format": form, "ncols": None})
