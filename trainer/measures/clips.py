"""The clips of a set, measured one by one: frames that are read once, numbers that are kept by what was measured."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...networks.atomic import write_bytes
from ...samplers.measures import ClipMeasures, measure
from ..clips.cache import content_hash, name_of
from ..clips.decoding import shots_of
from ..clips.frames import Frames
from ..clips.shards import opened
from ..clips.shot import ClipError
from ..clips.source import Source
from ..show.progress import counted, working

log = logging.getLogger("stillmotion")

FORMAT = 2  # raised when a measure changes, so that old numbers are not taken for new ones
FOLDER_FPS = 8.0  # frames a second of a folder of pictures, which knows no times
PER_PROCESS = 16  # clips that pay for the start of another process


@dataclass(frozen=True)
class Measured:
    """A clip and its numbers, or the problem why it has none; `fps` and `size` (width, height) of what was measured,
    `damage` that ended it before its end."""

    source: Source
    fps: float = nan
    size: tuple[int, int] = (0, 0)
    numbers: ClipMeasures | None = None
    damage: str = ""
    problem: str | None = None


class ClipFrames:
    """Iterates over the frames of a clip, uint8 (height, width, 3): each one of it, or those on screen at `fps`.

    Raises ClipError where the clip cannot be used. `rate` and `size` are known at the end.
    """

    def __init__(self, source: Source, fps: float | None):
        self.fps, self.read = fps, Frames(source, fps) if fps else None
        self.shots = self.read.shots if self.read else shots_of(source.path, FOLDER_FPS)

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.read:
            for chunk in self.read:
                yield from chunk
            return
        for shot in self.shots:
            yield np.array(shot.picture())
        if self.shots.count < 2:
            raise ClipError(self.shots.damage or "a single picture, or nothing that can be decoded: not a clip")

    @property
    def rate(self) -> float:
        return self.fps or self.shots.count / self.shots.seconds


def measure_set(sources: Sequence[Source], fps: float | None, cache: Path, processes: int) -> list[Measured]:
    """Measure clips, on several processes where there are clips enough to pay for their start.

    Args:
        fps: frames a second that are looked at; None: each frame of a clip.
        cache: folder of numbers that are known already.
    """
    one = partial(measure_clip, fps=fps, cache=cache)
    wanted = min(processes, 1 + len(sources) // PER_PROCESS)
    with working("measuring", len(sources), "clip") as bar:
        if wanted == 1:
            return list(counted(map(one, sources), bar))
        with ProcessPoolExecutor(wanted, multiprocessing.get_context("spawn"), initializer=become_worker) as pool:
            try:
                return list(counted(pool.map(one, sources, chunksize=4), bar))
            except BrokenProcessPool as error:
                raise ValueError(
                    "A process ended while it measured clips, out of memory or in a decoder; --processes 1 needs less"
                    " memory, and its bar shows at which clip"
                ) from error


def become_worker() -> None:
    """Keep a process of a pool to one core, and leave Ctrl-C to the one that started it."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def measure_clip(source: Source, fps: float | None, cache: Path) -> Measured:
    """Return the numbers of a clip, from the cache or measured now."""
    try:
        with opened(source) as clip:
            path = cache / f"{name_of('measures', FORMAT, content_hash(clip.path), fps)}.json"
            known = read_numbers(path)
            if known is None:
                known = measured_now(clip, fps)
                write_numbers(path, known)
    except ClipError as error:
        return Measured(source, problem=str(error))
    return Measured(source, *known)


class Numbers(NamedTuple):
    """What is kept of a clip, see `Measured`."""

    fps: float
    size: tuple[int, int]
    numbers: ClipMeasures
    damage: str


def measured_now(clip: Source, fps: float | None) -> Numbers:
    frames = ClipFrames(clip, fps)
    numbers = measure(frames)
    return Numbers(frames.rate, frames.shots.size, numbers, frames.shots.damage)


def write_numbers(path: Path, known: Numbers) -> None:
    write_bytes(path, json.dumps({**known._asdict(), "numbers": without_nan(asdict(known.numbers))}).encode())


def read_numbers(path: Path) -> Numbers | None:
    """Return numbers that were written before; None where there are none, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        values = {name: nan if value is None else value for name, value in known["numbers"].items()}
        numbers = ClipMeasures(**{**values, "differences": tuple(values["differences"])})
        return Numbers(known["fps"], tuple(known["size"]), numbers, known["damage"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and is made again (%s)", path, error)
        return None


def without_nan(values: dict) -> dict:
    """Return values as JSON has them, which knows no nan."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in values.items()}


def usable(clips: Iterable[Measured], skip_bad: bool) -> list[Measured]:
    """Return the clips that have numbers.

    Raises:
        ValueError: some have none and `skip_bad` is off, or none has any.
    """
    clips = list(clips)
    good, bad = [c for c in clips if c.problem is None], [c for c in clips if c.problem]
    reasons = "; ".join(f"{clip.source.name}: {clip.problem}" for clip in bad[:5]) + " …" * (len(bad) > 5)
    if not good:
        raise ValueError(f"None of the {len(clips)} clips can be measured: {reasons}")
    if bad and not skip_bad:
        raise ValueError(f"{len(bad)} of {len(clips)} clips cannot be measured; --skip-bad leaves them out: {reasons}")
    if bad:
        log.warning("%d of %d clips are left out: %s", len(bad), len(clips), reasons)
    return good
