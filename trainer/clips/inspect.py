"""Which clips training would use, what it would see of them, and why others cannot be."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..show.pictures import Motion, contact_sheet, motion_amount
from .decoding import ClipError
from .find import ClipFormat, Source, decode, fit, too_short

log = logging.getLogger("stillmotion")

STILL = 0.05  # percent of the width from frame to frame, below which a clip does not move to the eye


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


def inspect_clips(sources: Iterable[Source], form: ClipFormat) -> list[ClipReport]:
    """Decode every clip and report what it is, or why it cannot be used."""
    return [inspect(source, form) for source in tqdm(sources, desc="reading clips", unit="clip", leave=False)]


def inspect(source: Source, form: ClipFormat) -> ClipReport:
    """Decode one clip and report what it is."""
    if source.missing:
        return ClipReport(source, source.problem)
    try:
        clip = decode(source, form.fps, size=form.size)
    except ClipError as error:
        return ClipReport(source, str(error))
    count = len(clip.frames)
    short = too_short(clip.seconds, count, form.fps, form.frames, clip.note) if count < form.frames else None
    motion, window = motion_amount(clip.frames), fit(clip.frames[: form.frames], form.size)
    still = "nothing moves in it" if motion.flow < STILL else ""
    notes = ", ".join(filter(None, (clip.note, still)))
    return ClipReport(
        source, short or source.problem, notes, count, clip.seconds, clip.native_fps, clip.native_size, motion, window
    )


def usable_clips(reports: list[ClipReport], skip_bad: bool) -> list[Source]:
    """Return the sources of the clips that can be used.

    Raises:
        ValueError: some cannot and `skip_bad` is off, or none can; every one is named with its reason.
    """
    good = [report.source for report in reports if not report.problem]
    bad = "; ".join(f"{report.source.name}: {report.problem}" for report in reports if report.problem)
    if not good:
        raise ValueError(f"None of the {len(reports)} clips can be used: {bad}")
    if bad and not skip_bad:
        raise ValueError(
            f"{len(reports) - len(good)} of {len(reports)} clips cannot be used; mend them, take them away, or leave "
            f"them out with --skip-bad: {bad}"
        )
    if bad:
        log.warning("%d of %d clips are left out: %s", len(reports) - len(good), len(reports), bad)
    return good


def table(reports: list[ClipReport]) -> str:
    """Return the reports as text, a line each below a head."""
    head = ("clip", "seconds", "fps", "size", "frames", "flow %", "diff", "caption", "status")
    rows = [head, *map(cells, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = ("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def cells(report: ClipReport) -> tuple[str, ...]:
    caption = shortened(report.source.caption, 40) or "-"
    status = report.problem or ("ok" + (f" ({report.note})" if report.note else ""))
    if report.motion is None:
        return (report.source.name, *["-"] * 6, caption, status)
    size = "{}x{}".format(*report.native_size)
    numbers = (f"{report.seconds:.2f}", f"{report.native_fps:.4g}", size, str(report.count))
    return (
        report.source.name,
        *numbers,
        f"{report.motion.flow:.2f}",
        f"{report.motion.difference:.1f}",
        caption,
        status,
    )


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def write_sheet(reports: list[ClipReport], path: Path, columns: int = 8) -> None:
    """Return the contact sheet of what training sees; the clips that cannot be used come with the reason."""
    contact_sheet([(label(report), None if report.problem else report.window) for report in reports], path, columns)


def label(report: ClipReport) -> str:
    if report.problem:
        return f"{report.source.name}: {report.problem}"
    motion = f"{report.seconds:.1f} s, moves {report.motion.flow:.2f} %" if report.motion else ""
    return "\n".join(filter(None, (report.source.name, report.source.caption, motion, report.note)))
