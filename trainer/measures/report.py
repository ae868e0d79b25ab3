"""Numbers of sets of clips as tables, JSON and CSV. A smoothness is a mean over the clips that move of themselves."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from ...networks.shown import shown
from ...samplers.measures import ClipMeasures, moves_of_itself, remarks
from ..clips.kinds import CLIP_SUFFIXES, STILLS
from .clips import Measured, without_nan
from .statistics import Interval, bootstrap_difference, bootstrap_mean

LISTED = 20  # clips in the table on the screen; the CSV has all


class Metric(NamedTuple):
    """A number: its short name and its whole one, how it is written, and by how much it is multiplied for people.

    `always`: counts for every clip; else for those alone that move of themselves, whose smoothness says something.
    """

    short: str
    title: str
    form: str
    factor: float = 1.0
    always: bool = False


METRICS = {
    "motion": Metric("motion", "motion, % a frame", ".2f", always=True),
    "own_motion": Metric("own", "motion without the camera's", ".2f", always=True),
    "motion_factor": Metric("factor", "motion factor", ".0f", always=True),
    "appearance_factor": Metric("look", "appearance factor", ".3f", always=True),
    "warping_error": Metric("warp", "warping error, 1e-4", ".2f", 1e4),
    "followed": Metric("follow", "followed, % of pixels", ".0f", 100),
    "homography_error": Metric("homogr.", "homography error", ".0f"),
    "flicker": Metric("flicker", "flicker, grey levels", ".2f"),
    "order": Metric("order", "order", ".1f"),
    "seam": Metric("seam", "seam", ".1f"),
    "loop": Metric("loop", "loop seam", ".1f"),
    "consistency": Metric("consist.", "temporal consistency", ".4f"),
    "clipsim": Metric("CLIPSIM", "CLIPSIM", ".4f", always=True),
}
"""In the order in which they are shown: how much moves comes first."""


@dataclass(frozen=True)
class Row:
    """A clip in a table: its numbers by the names of METRICS, whether it moves of itself, and what is remarkable."""

    name: str
    caption: str
    frames: int
    fps: float
    values: dict[str, float]
    moves: bool
    remarks: dict[str, str] = field(default_factory=dict)


def row_of(clip: Measured, more: Mapping[str, float]) -> Row:
    """Return the row of a clip that has numbers; `more` are those that need a network."""
    numbers, source = clip.numbers, clip.source
    known = {f.name: getattr(numbers, f.name) for f in fields(ClipMeasures) if f.name in METRICS} | dict(more)
    values = {name: known[name] for name in METRICS if name in known}
    moves, damaged = moves_of_itself(numbers, clip.fps), {"damaged": clip.damage} if clip.damage else {}
    said_of = damaged | remarks(numbers, clip.fps)
    return Row(source.name, source.caption, numbers.frames, clip.fps, values, moves, said_of)


def rows_that_count(rows: Sequence[Row], name: str) -> list[Row]:
    """Return the rows whose numbers of one metric count."""
    return [row for row in rows if row.moves or METRICS[name].always]


def numbers_of(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return the numbers of one metric by the names of clips, as far as they count: without suffix, since a set may
    hold the same clips in another form, but where two of the set would have one name."""
    stems = Counter(map(stem_of, rows))
    named = ((stem_of(row), row) for row in rows_that_count(rows, name))
    return {stem if stems[stem] == 1 else row.name: row.values.get(name, math.nan) for stem, row in named}


def stem_of(row: Row) -> str:
    path = PurePath(row.name)
    return (path.with_suffix("") if path.suffix.lower() in CLIP_SUFFIXES | STILLS else path).as_posix()


def summary(rows: Sequence[Row], seed: int) -> dict[str, Interval]:
    """Return mean and interval of each metric that the rows have."""
    names = [name for name in METRICS if any(name in row.values for row in rows)]
    values = {name: np.array([row.values.get(name, math.nan) for row in rows_that_count(rows, name)]) for name in names}
    return {name: bootstrap_mean(of_clips, seed) for name, of_clips in values.items()}


def differences(ours: Sequence[Row], theirs: Sequence[Row], seed: int) -> dict[str, tuple[Interval, bool]]:
    """Return ours - theirs of each metric that both have, with its interval and whether clips were paired."""
    names = [name for name in METRICS if all(any(name in row.values for row in rows) for rows in (ours, theirs))]
    return {name: bootstrap_difference(numbers_of(ours, name), numbers_of(theirs, name), seed) for name in names}


def clip_table(rows: Sequence[Row]) -> str:
    """Return a line for each of the first clips: its numbers, and what it is where it is not sound."""
    names = [name for name in METRICS if any(name in row.values for row in rows)]
    head = ["clip", "frames", "fps", *(METRICS[name].short for name in names), "what it is"]
    lines = [
        [shown(row.name), str(row.frames), f"{row.fps:.4g}", *(written(row.values[n], n) for n in names), said(row)]
        for row in rows[:LISTED]
    ]
    more = [f"and {len(rows) - LISTED} others, in clips.csv"] if len(rows) > LISTED else []
    return "\n".join([*aligned([head, *lines]), *more])


def said(row: Row) -> str:
    return "; ".join(row.remarks.values()) or "sound"


def set_table(sets: Mapping[str, Sequence[Row]], seed: int) -> str:
    """Return a line for each metric: mean and interval of each set, and how each further set differs from the first."""
    (first, base), *others = sets.items()
    means = {name: summary(rows, seed) for name, rows in sets.items()}
    added = {name: differences(rows, base, seed) for name, rows in others}
    head = ["mean [95 % interval]", *map(shown, sets), *(f"{shown(name)} - {shown(first)}" for name, _ in others)]
    blank, moving = [""] * len(others), [sum(row.moves for row in rows) for rows in sets.values()]
    lines = [head, ["clips", *(str(len(rows)) for rows in sets.values()), *blank]]
    lines.append(["of which move", *map(str, moving), *blank])
    for metric in METRICS:
        if any(metric in known for known in means.values()):
            title = METRICS[metric].title + ("" if METRICS[metric].always else " *")
            cells = [with_interval(known.get(metric), metric) for known in means.values()]
            lines.append([title, *cells, *(difference_told(known.get(metric), metric) for known in added.values())])
    note = "* over the clips that move of themselves: of a still one, or of a panned still, it says nothing"
    return "\n".join([*aligned(lines), note, *(pairing(name, first, known) for name, known in added.items())])


def pairing(name: str, first: str, known: Mapping[str, tuple[Interval, bool]]) -> str:
    sets, pairs = f"{shown(name)} and {shown(first)}", [interval.clips for interval, paired in known.values() if paired]
    if pairs:
        return f"{sets}: compared clip by clip, the {max(pairs)} that have one name in both"
    return f"{sets}: no clip of one has the name of one of the other; compared as two samples"


def remarks_table(sets: Mapping[str, Sequence[Row]]) -> str:
    """Say how many clips of each set are what, and where so few move that its smoothness says little of a set."""
    lines = []
    for name, rows in sets.items():
        counts = Counter(kind for row in rows for kind in row.remarks)
        lines += [f"{shown(name)}: {kind}: {count} of {len(rows)} clips" for kind, count in counts.items()]
        if 2 * sum(row.moves for row in rows) <= len(rows):
            lines.append(f"{shown(name)}: few of its clips move of themselves; its smoothness says little of it")
    return "\n".join(lines)


def distance_told(name: str, found: Mapping[str, float]) -> str:
    whats = {"look": "of how clips look", "change": "of how that changes", "fvd": "of what I3D sees (FVD)"}
    return f"{shown(name)}: Fréchet distance " + ", ".join(f"{far:.4g} {whats[what]}" for what, far in found.items())


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def written(value: float, metric: str) -> str:
    """Return a number as the table has it; "-" where it is not defined."""
    about = METRICS[metric]
    return "-" if math.isnan(value) else f"{value * about.factor:{about.form}}"


def with_interval(interval: Interval | None, metric: str) -> str:
    if interval is None or math.isnan(interval.mean):
        return "-"
    low, high = written(interval.low, metric), written(interval.high, metric)
    return written(interval.mean, metric) + ("" if math.isnan(interval.low) else f" [{low}, {high}]")


def difference_told(known: tuple[Interval, bool] | None, metric: str) -> str:
    if known is None or math.isnan(known[0].low):
        return "-"
    interval, form, factor = known[0], METRICS[metric].form, METRICS[metric].factor
    numbers = "{:+{f}} [{:+{f}}, {:+{f}}]".format(*(factor * value for value in interval[:3]), f=form)
    return f"{numbers}: no difference seen" if interval.holds_nought else numbers


def as_csv(sets: Mapping[str, Sequence[Row]]) -> str:
    """Return a line for each clip, with the numbers as they are, without the factors of the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in METRICS if any(name in row.values for rows in sets.values() for row in rows)]
    writer.writerow(["set", "clip", "frames", "fps", *names, "what it is", "caption"])
    for name, rows in sets.items():
        for row in rows:
            numbers = ["" if math.isnan(v := row.values.get(n, math.nan)) else repr(v) for n in names]
            writer.writerow(
                [name, row.name, row.frames, row.fps, *numbers, "; ".join(row.remarks.values()), row.caption]
            )
    return text.getvalue()


def as_json(sets: Mapping[str, Sequence[Row]], seed: int) -> dict:
    """Return everything that the tables say, for programs; null is a number that is not defined."""
    (first, base), *others = sets.items()
    return {
        "sets": {
            name: {
                "clips": [{"name": r.name, **without_nan(r.values), "remarks": r.remarks} for r in rows],
                "moving": sum(row.moves for row in rows),
                "means": {metric: without_nan(known._asdict()) for metric, known in summary(rows, seed).items()},
            }
            for name, rows in sets.items()
        },
        "differences": {
            f"{name} - {first}": {
                metric: {**without_nan(known._asdict()), "paired": paired, "seen": not known.holds_nought}
                for metric, (known, paired) in differences(rows, base, seed).items()
            }
            for name, rows in others
        },
    }
