"""Which clips training would use, what it would see of them, and why others cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...networks.shown import shown
from ...samplers.measures import STILL
from ..show.pictures import Motion, MotionMeter, contact_sheet
from ..show.progress import counted, working
from .frames import Frames, fit, too_short
from .shards import opened
from .shot import ClipError
from .source import NO_CAPTION, ClipFormat, Source

log = logging.getLogger("stillmotion")

NAMED = 10  # clips that cannot be used which an error names, of many
LISTED = 20  # and a table or a sheet
SHOWN = 200  # clips on a sheet


@dataclass(frozen=True)
class ClipReport:
    """All that is known of a clip; `problem` says why it cannot be used, `note` what else is worth knowing.

    `window` holds the first frames that training would see, uint8 (frames, height, width, 3), `count` says how many
    frames the clip has at the target fps.
    """

    source: Source
    problem: str | None = None
    note: str = ""
    count: int = 0
    seconds: float = 0.0
    native_fps: float = 0.0
    native_size: tuple[int, int] = (0, 0)
    motion: Motion | None = None
    window: np.ndarray | None = None


def inspect_clips(
    sources: Iterable[Source], form: ClipFormat, remark: Callable[[str], str] = lambda caption: ""
) -> list[ClipReport]:
    """Decode every clip and report what it is, or why it cannot be used.

    Args:
        remark: what is worth knowing of a caption, or nothing.
    """
    sources = list(sources)
    with working("reading clips", len(sources), "clip") as bar:
        return [report(source, form, remark) for source in counted(sources, bar)]


def report(source: Source, form: ClipFormat, remark: Callable[[str], str]) -> ClipReport:
    try:
        with opened(source) as clip:
            found = replace(inspect(clip, form), source=source)
    except ClipError as error:
        return ClipReport(source, str(error))
    note = ", ".join(filter(None, (found.note, remark(source.caption))))
    return replace(found, note=note)


def inspect(source: Source, form: ClipFormat) -> ClipReport:
    """Decode one clip, a few frames at a time, and report what it is."""
    read, meter, first = Frames(source, form.fps, size=form.size), MotionMeter(), []
    try:
        for chunk in read:
            meter.add(chunk)
            first += list(chunk[: max(0, form.frames - len(first))])
    except ClipError as error:
        return ClipReport(source, str(error))
    shots, motion = read.shots, meter.motion()
    short = too_short(shots.seconds, read.count, form.fps, form.frames, shots.damage)
    problem = (short if read.count < form.frames else None) or source.problem
    notes = ", ".join(filter(None, (shots.note, "nothing moves in it" if motion.flow * form.fps < STILL else "")))
    window = fit(np.stack(first), form.size)
    return ClipReport(source, problem, notes, read.count, shots.seconds, read.native_fps, shots.size, motion, window)


def refuse_without_captions(problems: Sequence[str | None]) -> None:
    """Raise ValueError, with the shortest thing that helps, where all clips lack captions.

    Args:
        problems: of each clip.
    """
    if problems and all(problem and problem.startswith(NO_CAPTION) for problem in problems):
        raise ValueError(
            f"None of the {len(problems)} clips has a caption: say once for all what is to be seen in them, as in"
            ' --caption "a man playing the guitar", or write what is in clip.mp4 into clip.txt beside it, for each'
        )


def usable_clips(reports: list[ClipReport], skip_bad: bool) -> list[Source]:
    """Return the sources of the clips that can be used.

    Raises:
        ValueError: some cannot and `skip_bad` is off, or none can; they are named with their reasons, of many the
            first few.
    """
    good = [report.source for report in reports if not report.problem]
    bad, count = named([report for report in reports if report.problem]), len(reports) - len(good)
    if not good:
        refuse_without_captions([report.problem for report in reports])
        raise ValueError(f"None of the {len(reports)} clips can be used: {bad}")
    if bad and not skip_bad:
        raise ValueError(
            f"{count} of {len(reports)} clips cannot be used; mend them, take them away, or leave them out with"
            f" --skip-bad: {bad}"
        )
    if bad:
        log.warning("%d of %d clips are left out: %s", count, len(reports), bad)
    return good


def named(bad: list[ClipReport]) -> str:
    more = [f"and {len(bad) - NAMED} others"] if len(bad) > NAMED else []
    return "; ".join([*(f"{shown(r.source.name)}: {r.problem}" for r in bad[:NAMED]), *more])


def table(reports: list[ClipReport]) -> str:
    """Return the reports as text, a line each below a head; of many clips that are not there, the first few."""
    head = ("clip", "seconds", "fps", "size", "frames", "flow %", "diff", "caption", "status")
    listed, left = without_most_bad(reports)
    rows = [head, *map(cells, listed)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = ("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)
    more = [f"and {left} others that cannot be used"] if left else []
    return "\n".join([*(line.rstrip() for line in lines), *more])


def without_most_bad(reports: list[ClipReport]) -> tuple[list[ClipReport], int]:
    """Return the reports with the first few alone of those that cannot be used, and how many are left out."""
    listed, bad = [], 0
    for found in reports:
        bad += bool(found.problem)
        if not found.problem or bad <= LISTED:
            listed.append(found)
    return listed, len(reports) - len(listed)


def cells(report: ClipReport) -> tuple[str, ...]:
    name, caption = shown(report.source.name), shortened(report.source.caption, 40) or "-"
    status = shown(report.problem or ("ok" + (f" ({report.note})" if report.note else "")))
    if report.motion is None:
        return (name, *["-"] * 6, caption, status)
    size = "{}x{}".format(*report.native_size)
    numbers = (f"{report.seconds:.2f}", f"{report.native_fps:.4g}", size, str(report.count))
    return (name, *numbers, f"{report.motion.flow:.2f}", f"{report.motion.difference:.1f}", caption, status)


def shortened(text: str, length: int) -> str:
    text = shown(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def write_sheet(reports: list[ClipReport], path: Path, columns: int = 8) -> None:
    """Write the contact sheet of what training sees; the clips that cannot be used come with the reason."""
    listed = without_most_bad(reports)[0][:SHOWN]
    contact_sheet([(label(report), None if report.problem else report.window) for report in listed], path, columns)


def label(report: ClipReport) -> str:
    if report.problem:
        return shown(f"{report.source.name}: {report.problem}")
    motion = f"{report.seconds:.1f} s, moves {report.motion.flow:.2f} %" if report.motion else ""
    caption = shortened(report.source.caption, 400)
    return "\n".join(filter(None, (shown(report.source.name), caption, motion, shown(report.note))))
