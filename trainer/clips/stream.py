"""Training clips of a set too large for memory, as an endless stream for each process.

The order is a function of (seed, epoch, rank, world): the shards are permuted and assigned to the processes, whose
samples go through a buffer that shuffles them. A resumed run walks the same order to the same position, and decodes
nothing on the way.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Generator, Tensor

from .batches import TrainingClip, generator_for
from .frames import too_short
from .inspect import ClipReport, inspect_clips
from .shards import Shard, opened
from .shot import ClipError
from .source import ClipFormat, Source

log = logging.getLogger("stillmotion")

BUFFER = 1000  # samples among which the next one is drawn; a sample is a name, a caption and a place
NAMED = 5  # samples whose problems an error names, of many


@dataclass(frozen=True)
class Loader:
    """Makes training clips of samples, through the cache.

    `latents_of` gives the scaled latents (frames, 4, height, width) of a source at `fps`, see `clip_latents`, `text_of`
    the embedding (tokens, width) of a caption, see `caption_embedding`; `frames` is the least that a clip must have.
    `features_of` gives what an image model sees in each frame (frames, width), see `clip_features`; None: none wanted.
    """

    frames: int
    fps: float
    latents_of: Callable[[Source], Tensor]
    text_of: Callable[[str], Tensor]
    features_of: Callable[[Source], Tensor] | None = None

    def __call__(self, source: Source) -> TrainingClip:
        """Raise ClipError where the sample cannot be used."""
        if source.problem:
            raise ClipError(source.problem)
        with opened(source) as clip:
            latents = self.latents_of(clip).float()
            features = self.features_of(clip) if self.features_of else None
        if len(latents) < self.frames:
            raise ClipError(too_short(len(latents) / self.fps, len(latents), self.fps, self.frames))
        return TrainingClip(source.name, source.caption, latents, self.text_of(source.caption).float(), features)


class ClipStream:
    """Iterates over the training clips of one process, for ever; `position` says how many samples were taken so far.

    A stream made anew that skips to the position of another goes on as the other does. Clips that are held out and
    samples that cannot be used count as taken, so that positions depend on the order alone.

    Args:
        load: makes a training clip of a sample, or raises ClipError: a Loader.
        rank, world: number of this process, and of all.
        held_out: names of samples that are passed over.
        skip_bad: pass over samples that cannot be used; without it the first one is an error. `skipped` holds their
            names and problems.
        buffer: samples among which the next one is drawn.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        load: Callable[[Source], TrainingClip],
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        held_out: Collection[str] = (),
        skip_bad: bool = False,
        buffer: int = BUFFER,
    ):
        self.shards = [Counted(shard) for shard in shards]
        self.load, self.seed, self.rank, self.world = load, seed, rank, world
        self.held_out, self.skip_bad, self.buffer = frozenset(held_out), skip_bad, buffer
        self.skipped: dict[str, str] = {}
        self.position = 0
        self.begin(0)

    def __iter__(self) -> Iterator[TrainingClip]:
        return self

    def __next__(self) -> TrainingClip:
        while True:
            fruitless, epoch = not self.fruitful, self.epoch
            source = self.take()
            if self.epoch > epoch and fruitless:  # a whole epoch gave nothing: without this the loop might never end
                self.check_set()
            if source.name in self.held_out:
                continue
            try:
                clip = self.load(source)
            except ClipError as error:
                self.skip(source, error)
            else:
                self.fruitful = True
                return clip

    def skip_to(self, position: int) -> None:
        """Go on after `position` samples as if they had been taken one by one; decode none of them."""
        if position < self.position:
            raise ValueError(f"the stream is at {self.position} and cannot go back to {position}; make a new one")
        while self.position < position:
            epoch, size = self.epoch, self.size_of_epoch()
            if size is not None and self.first + size <= position:
                self.position = self.first + size
                self.begin(epoch + 1)
            while self.position < position and self.epoch == epoch:
                self.take()

    def begin(self, epoch: int) -> None:
        """Start an epoch at the present position."""
        self.epoch, self.first, self.fruitful = epoch, self.position, False
        assigned, places = assign_shards(len(self.shards), self.seed, epoch, self.rank, self.world)
        samples = chain.from_iterable(self.shards[number] for number in assigned)
        mine = islice(samples, places.start, None, places.step)
        self.samples = shuffled(mine, self.buffer, generator_for(self.seed, "samples", epoch, self.rank))

    def take(self) -> Source:
        """Return the next sample, of this epoch or of the next one that has any."""
        for _ in range(self.world + 1):  # so many epochs show every sample to every process
            source = next(self.samples, None)
            if source is not None:
                self.position += 1
                return source
            self.begin(self.epoch + 1)
        raise ValueError("the set of clips is empty")

    def size_of_epoch(self) -> int | None:
        """Count the samples of this epoch, where all of its shards were once read to their end."""
        assigned, places = assign_shards(len(self.shards), self.seed, self.epoch, self.rank, self.world)
        sizes = [self.shards[number].size for number in assigned]
        return None if None in sizes else len(range(sum(sizes))[places])

    def skip(self, source: Source, error: ClipError) -> None:
        if not self.skip_bad:
            raise ValueError(unusable(source, error)) from error
        if source.name not in self.skipped:
            log.warning("%s is left out: %s", source.name, error)
            self.skipped[source.name] = str(error)

    def check_set(self) -> None:
        """Make sure, after an epoch without a clip, that the set has one: another epoch may bring it here."""
        problems = []
        for source in every_sample(self.shards):
            try:
                if source.name not in self.held_out:
                    self.load(source)
                    return
            except ClipError as error:
                problems.append(f"{source.name}: {error}")
        raise ValueError(none_left(len(self.held_out), problems))


class Counted:
    """A shard that knows its size, in samples, once it was read to its end."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self.size: int | None = None

    def __iter__(self) -> Iterator[Source]:
        size = 0
        for source in self.shard:
            yield source
            size += 1
        self.size = size


def assign_shards(shards: int, seed: int, epoch: int, rank: int, world: int) -> tuple[list[int], slice]:
    """Return the shards that a process reads in an epoch, in order, and which samples of them all together.

    Whole shards where there is one for every process; every sample of them. Otherwise all shards, and every world-th
    sample, others in the next epoch.
    """
    order = torch.randperm(shards, generator=generator_for(seed, "shards", epoch)).tolist()
    if shards >= world:
        return order[rank::world], slice(0, None, 1)
    return order, slice((rank - epoch) % world, None, world)


def shuffled(samples: Iterable[Source], buffer: int, generator: Generator) -> Iterator[Source]:
    """Return the samples, each drawn from among the next `buffer` that are left."""
    waiting = []
    for sample in samples:
        if len(waiting) < buffer:
            waiting.append(sample)
        else:
            place = int(torch.randint(buffer, (), generator=generator))
            yield waiting[place]
            waiting[place] = sample
    for place in torch.randperm(len(waiting), generator=generator).tolist():
        yield waiting[place]


def every_sample(shards: Iterable[Iterable[Source]]) -> Iterator[Source]:
    """Return all samples in the order in which they lie there, whatever the seed."""
    return chain.from_iterable(shards)


def unusable(source: Source, error: ClipError) -> str:
    return f"{source.name} cannot be used: {error}; mend it, take it away, or leave such clips out with --skip-bad"


def none_left(held_out: int, problems: Sequence[str]) -> str:
    named = "".join(f"; {problem}" for problem in problems[:NAMED])
    return f"no clip is left to train on: {held_out} are held out, and {len(problems)} cannot be used{named}"


def first_usable(
    shards: Iterable[Iterable[Source]], count: int, load: Callable[[Source], TrainingClip], skip_bad: bool = False
) -> list[TrainingClip]:
    """Return the first `count` clips of a set in its own order, or all there are; the same for every process and seed.

    Raises:
        ValueError: none can be used, or one before them cannot and `skip_bad` is off.
    """
    seen: set[str] = set()

    def others() -> Iterator[Source]:
        for source in every_sample(shards):
            if source.name not in seen:  # a clip may have two captions
                yield source

    clips = []
    for clip in usable(others(), load, skip_bad, []):
        clips.append(clip)
        seen.add(clip.name)
        if len(clips) == count:
            break
    return clips


def every_usable(
    sources: Iterable[Source], load: Callable[[Source], TrainingClip], skip_bad: bool = False
) -> list[TrainingClip]:
    """Return the clips of a few; arguments and errors as of `first_usable`."""
    problems: list[str] = []
    clips = list(usable(sources, load, skip_bad, problems))
    if problems:
        log.warning("%d clips are left out: %s", len(problems), "; ".join(problems[:NAMED]))
    return clips


def usable(
    sources: Iterable[Source], load: Callable[[Source], TrainingClip], skip_bad: bool, problems: list[str]
) -> Iterator[TrainingClip]:
    """Return training clips one by one; what is wrong with others goes to `problems`."""
    count = 0
    for source in sources:
        try:
            clip = load(source)
        except ClipError as error:
            if not skip_bad:
                raise ValueError(unusable(source, error)) from error
            problems.append(f"{source.name}: {error}")
            continue
        count += 1
        yield clip
    if not count:
        raise ValueError(none_left(0, problems))


def peek(
    shards: Sequence[Shard], count: int, form: ClipFormat, remark: Callable[[str], str] = lambda caption: ""
) -> list[ClipReport]:
    """Report on the first `count` samples of a set, which are decoded but not encoded.

    Args:
        remark: what is worth knowing of a caption, or nothing.
    """
    return inspect_clips(islice(every_sample(shards), count), form, remark)
