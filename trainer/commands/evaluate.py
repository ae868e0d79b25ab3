"""`python -m trainer evaluate`: sets of clips in, numbers with intervals out, and how far they can be trusted."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from ...networks.atomic import write_bytes
from ...networks.shown import shown
from ..clips.find import find_clips
from ..config import recorded
from ..measures.clips import Measured, measure_set, usable
from ..measures.pictures import write_pictures
from ..measures.report import Row, as_csv, as_json, clip_table, remarks_table, row_of, set_table
from ..options import EvaluateOptions


def evaluate(options: EvaluateOptions) -> None:
    """Measure every clip of each set; print the tables and write them, with pictures."""
    measured = {name: measured_clips(path, options) for name, path in named(options.videos).items()}
    rows = {name: [row_of(clip, {}) for clip in clips] for name, clips in measured.items()}
    for name, of_set in rows.items():
        print(f"\n{shown(name)}\n{clip_table(of_set)}")
    print(f"\n{set_table(rows, options.seed)}\n{remarks_table(rows)}")
    write(rows, measured, options)


def named(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Return the sets by short names: that of the folder or file, or all of the path where two have one name."""
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths)}


def measured_clips(videos: Path, options: EvaluateOptions) -> list[Measured]:
    sources = list(islice(find_clips(videos, options.caption), options.first))
    return usable(measure_set(sources, options.fps, options.cache, options.processes), options.skip_bad)


def write(rows: dict[str, list[Row]], measured: dict[str, list[Measured]], options: EvaluateOptions) -> None:
    """Write what was measured into the output folder, and say where."""
    report = {"options": recorded(options), **as_json(rows, options.seed)}
    text = json.dumps(report, ensure_ascii=False, indent=1)
    files = {"evaluation.json": text, "clips.csv": as_csv(rows)}
    for name, content in files.items():
        write_bytes(options.output / name, content.encode("utf-8", "backslashreplace"))
    pictures = write_pictures(options.output, rows, measured, options.fps)
    print("\n" + "\n".join(str(path) for path in (*(options.output / name for name in files), *pictures)))
