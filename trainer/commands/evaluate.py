"""`python -m trainer evaluate`: sets of clips in, numbers with intervals out, and how far they can be trusted."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from ...networks.atomic import write_bytes
from ...networks.shown import shown
from ..base.auto import resolve_base
from ..base.comfyui import find_comfyuis
from ..base.load import Base
from ..clips.find import Source, find_clips
from ..config import recorded
from ..measures.clips import Measured, measure_set, usable
from ..measures.networks import Networks, distances, load_networks, network_numbers, too_few
from ..measures.pictures import write_pictures
from ..measures.report import Row, as_csv, as_json, clip_table, distance_told, remarks_table, row_of, set_table
from ..options import EvaluateOptions
from ..run.generate import CLIPS, Generation, generate, read_prompts
from ..show.progress import counted, working

Sets = dict[str, list[Measured]]


def evaluate(options: EvaluateOptions) -> None:
    """Measure every clip of each set; print the tables and write them, with pictures."""
    if options.base:
        options = options.model_copy(update={"base": resolve_base(options.base, find_comfyuis())})
    made = [options.output / CLIPS] if options.generate else []
    places = named([*filter(None, [options.reference]), *made, *options.videos])
    found = {name: clips_in(path, options) for name, path in places.items() if path not in made}
    networks = load_networks(options.clip, options.features, options.base, options.fvd)
    if options.generate:  # what takes hours comes after all that may be wrong
        sample(options, networks.base)
    sets = {name: measured(found.get(name) or clips_in(path, options), options) for name, path in places.items()}
    rows = {name: rows_of(clips, networks, options) for name, clips in sets.items()}
    for name, of_set in rows.items():
        print(f"\n{shown(name)}\n{clip_table(of_set)}")
    print(f"\n{set_table(rows, options.seed)}\n{remarks_table(rows)}")
    far = distances_of(sets, networks, options) if options.reference else {}
    write(rows, sets, far, options)


def sample(options: EvaluateOptions, base: Base | None) -> None:
    """Sample the clips of the motion file, as far as they are not there yet."""
    assert options.generate and options.prompts and options.base and base, "the options go together"
    of_clip = options.seeds, options.frames, options.size, options.steps, options.guidance
    prompts = read_prompts(options.prompts)
    wanted = Generation(options.generate, options.base, prompts, *of_clip, over=options.over)
    generate(wanted, base, options.output)


def named(paths: list[Path]) -> dict[str, Path]:
    """Return the sets by short names: that of the folder or file, or all of the path where two have one name."""
    if twice := next((path for place, path in enumerate(paths) if path in paths[:place]), None):
        raise ValueError(f"{twice} is named twice; name each set once")
    names = [path.resolve().name for path in paths]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, paths)}


def clips_in(videos: Path, options: EvaluateOptions) -> list[Source]:
    return list(islice(find_clips(videos, options.caption), options.first))


def measured(sources: list[Source], options: EvaluateOptions) -> list[Measured]:
    return usable(measure_set(sources, options.fps, options.cache, options.processes), options.skip_bad)


def rows_of(clips: list[Measured], networks: Networks, options: EvaluateOptions) -> list[Row]:
    with working("looking at clips by networks", len(clips), "clip") as bar:
        return [
            row_of(clip, network_numbers(clip, networks, options.fps, options.cache)) for clip in counted(clips, bar)
        ]


def distances_of(sets: Sets, networks: Networks, options: EvaluateOptions) -> dict[str, dict[str, float]]:
    """Print and return the Fréchet distances of the sets to the reference, or why there are none."""
    if not (networks.features or networks.i3d):
        return {}
    refused = too_few({name: len(clips) for name, clips in sets.items()})
    if refused and not options.anyway:
        print(refused)
        return {}
    far = distances(sets, networks, options.fps, options.cache)
    print("\n".join(distance_told(name, found) for name, found in far.items()))
    return far


def write(rows: dict[str, list[Row]], sets: Sets, far: dict, options: EvaluateOptions) -> None:
    """Write what was measured into the output folder, and say where."""
    report = {"options": recorded(options), **as_json(rows, options.seed), "frechet": far}
    text = json.dumps(report, ensure_ascii=False, indent=1)
    files = {"evaluation.json": text, "clips.csv": as_csv(rows)}
    for name, content in files.items():
        write_bytes(options.output / name, content.encode("utf-8", "backslashreplace"))
    pictures = write_pictures(options.output, rows, sets, options.fps)
    print("\n" + "\n".join(str(path) for path in (*(options.output / name for name in files), *pictures)))
