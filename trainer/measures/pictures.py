"""The pictures of an evaluation: a row for each of the first clips of a set, and all clips in one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ...networks.shown import shown
from ..clips.shards import opened
from ..show.plots import clip_row, stacked, write_scatter
from .clips import ClipFrames, Measured
from .report import METRICS, Row, said, written

DRAWN = 40  # clips of a set that have a row
FRAMES, SIDE = 64, 512  # of each, at most; and pixels of their longer side


def write_pictures(
    folder: Path, rows: Mapping[str, Sequence[Row]], measured: Mapping[str, Sequence[Measured]], fps: float | None
) -> list[Path]:
    """Write them into a folder, and return their paths; `fps` as of `measure_set`."""
    paths = [folder / "motion.png"]
    across, up = METRICS["motion"], METRICS["warping_error"]
    dots = {shown(name): [in_the_plot(row) for row in of_set] for name, of_set in rows.items()}
    write_scatter(dots, paths[0], across.title, up.title)
    for number, (name, of_set) in enumerate(rows.items(), 1):
        paths.append(folder / f"clips_{number}.png")
        drawn = islice(zip(of_set, measured[name]), DRAWN)
        stacked([picture_of(row, clip, fps) for row, clip in drawn]).save(paths[-1])
    return paths


def in_the_plot(row: Row) -> tuple[float, float]:
    """Return motion and warping error as the table has them."""
    motion, error = (METRICS[name].factor * row.values[name] for name in ("motion", "warping_error"))
    return motion, error


def picture_of(row: Row, clip: Measured, fps: float | None) -> Image.Image:
    with opened(clip.source) as source:
        frames = np.stack([small(frame) for frame in islice(ClipFrames(source, fps), FRAMES)])
    motion, error = (written(row.values[name], name) for name in ("motion", "warping_error"))
    label = f"{shown(row.name)}\nmotion {motion} %, warping error {error}\n{said(row)}"
    return clip_row(label, frames, clip.numbers.differences)


def small(frame: np.ndarray) -> np.ndarray:
    """Scale a frame down to what a row can show: those of a camera's clip would take gigabytes."""
    picture = Image.fromarray(frame)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)
