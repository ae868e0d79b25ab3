"""What a run learns from: a handful of clips in memory, or a stream of them from a set of any size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..base.features import FeatureModel
from ..base.load import Base, encode_captions, encode_frames
from ..clips.batches import (
    Batch,
    Plan,
    TrainingClip,
    batch_for,
    batch_from,
    clips_hash,
    draw_picture,
    pictures_in,
)
from ..clips.cache import caption_embedding, clip_features, clip_latents, weights_hash
from ..clips.find import ClipFormat, Source
from ..clips.inspect import ClipReport, table, usable_clips
from ..clips.known import Known, as_it_is
from ..clips.pictures import picture_latents
from ..clips.shards import Shard, set_hash
from ..clips.stream import ClipStream, Loader, every_usable, first_usable, peek
from ..clips.words import fitted
from ..options import TrainOptions
from ..show.progress import counted, working
from .held_out import split_held_out
from .loop import BatchSource
from .previews import Preview, first_frame_of
from .session import Session, Stage

log = logging.getLogger("stillmotion")

LOOKED_AT = 16
"""So many clips of a streamed set are decoded and shown before training; the others are checked in their turn."""

MEASURED_WITHOUT_HELD_OUT = 4
"""So many training clips are measured with fixed noise where none were held out."""


class Encoder:
    """Latents of clips and embeddings of captions, from the cache or encoded now, on a device."""

    def __init__(
        self,
        base: Base,
        fps: float,
        size: tuple[int, int],
        cache: Path,
        device: torch.device,
        look: FeatureModel | None = None,
    ):
        self.base, self.fps, self.size, self.cache, self.device, self.look = base, fps, size, cache, device, look
        self.vae_hash, self.text_hash = weights_hash(base.vae), weights_hash(base.text_encoder)
        self.look_hash = weights_hash(look.model) if look else ""

    def latents_of(self, source: Source) -> Tensor:
        """Return all frames of a clip at `fps`, scaled, (frames, 4, height, width)."""
        return clip_latents(source, self.fps, self.size, self.base.vae, self.cache, self._encode, self.vae_hash).float()

    def latents_of_picture(self, source: Source) -> Tensor:
        """Return the latents of a picture, scaled, (1, 4, height, width)."""
        return picture_latents(source, self.size, self.base.vae, self.cache, self._encode, self.vae_hash).float()

    def _encode(self, vae, frames: Tensor) -> Tensor:
        return encode_frames(vae.to(self.device), frames.to(self.device))

    def features_of(self, source: Source) -> Tensor:
        """Return what the image model sees in each frame of a clip, (frames, width)."""
        assert self.look, "nobody looks at frames"
        return clip_features(source, self.fps, self.size, self.cache, self.look, self.device, self.look_hash)

    def text_of(self, caption: str) -> Tensor:
        """Return the embedded caption, (tokens, width); of one that is too long, the words that fit."""

        def encode(base: Base, captions: Sequence[str]) -> Tensor:
            base.text_encoder.to(self.device)
            return encode_captions(base, captions)

        words = fitted(caption, self.base.tokenizer)
        return caption_embedding(words, self.base, self.cache, encode, self.text_hash).float()

    def preview(self, caption: str, first: Tensor | None = None) -> Preview:
        return Preview(caption, self.text_of(caption), self.text_of(""), first)

    def offload(self) -> None:
        """Make room on the device for training; what is not in the cache brings a model back."""
        self.base.vae.cpu()
        self.base.text_encoder.cpu()
        if self.look:
            self.look.model.cpu()


@dataclass(frozen=True)
class TrainingSet:
    """The clips of a run, encoded.

    `names`, `captions`: of clips, or of the parts of a large set, for the log and the motion file. `reports`: of those
    that were looked at. `measured`: clips of the fixed-noise loss; `held_out`: names of those that are not trained on.
    `content`: a hash that tells whether a resumed run learns from the same. `batches`: makes the source of a plan's
    micro-batches of so many clips. `first`: the first clips; `factors`: what the motion file says of
    their motion and appearance. `known`: gives each batch what is known of its clips. `position`, `skip_to`: how far
    this process is in its streams, where there are any.
    """

    names: list[str]
    captions: list[str]
    reports: list[ClipReport]
    measured: list[TrainingClip]
    held_out: list[str]
    preview: Preview
    content: str
    batches: Callable[[Plan, int], BatchSource]
    first: list[TrainingClip] = field(default_factory=list)
    factors: dict[str, list[float]] = field(default_factory=dict)
    known: Known = as_it_is
    position: Callable[[], tuple[int, ...]] = tuple
    skip_to: Callable[[tuple[int, ...]], None] = lambda position: None

    def first_batch(self, plan: Plan, size: int) -> Batch:
        """Return a micro-batch like those of training, without taking one from a stream."""
        return self.known(batch_for(plan, self.measured, self.preview.no_caption, size, 1, 0))


def with_known(clips: TrainingSet, known: Known) -> TrainingSet:
    """Return a set whose batches say what is known of their clips."""

    def batches(plan: Plan, size: int) -> BatchSource:
        source = clips.batches(plan, size)
        return lambda step, number: known(source(step, number))

    return replace(clips, batches=batches, known=known)


def encoder_for(session: Session, base: Base, look: FeatureModel | None = None) -> Encoder:
    options = session.options
    return Encoder(base, options.fps, options.size, options.cache, session.accelerator.device, look)


def form_of(options: TrainOptions) -> ClipFormat:
    return ClipFormat(options.fps, options.frames, options.size)


def clips_in_memory(session: Session, reports: list[ClipReport], base: Base, first_frame: str = "noisy") -> TrainingSet:
    """Encode all usable clips of a few, the first process before the others, which then find them in the cache.

    Args:
        first_frame: "clean": previews start from the first frame of the first clip.

    Raises:
        ValueError: as many are to be held out as there are.
    """
    session.enter(Stage.ENCODING)
    options, accelerator, encoder = session.options, session.accelerator, encoder_for(session, base)
    sources = [report.source for report in reports if not report.problem]
    load = Loader(options.frames, options.fps, encoder.latents_of, encoder.text_of)
    with accelerator.main_process_first():  # a clip may have changed since it was looked at
        with working("encoding", len(sources), "clip", hidden=not accelerator.is_main_process) as bar:
            clips = every_usable(counted(sources, bar), load, options.skip_bad)
        first = first_frame_of(clips[0], session.cells) if first_frame == "clean" else None
        preview = encoder.preview(prompt_of(options, clips), first)
    encoder.offload()
    seen, held_out = split_held_out(clips, options.held_out)
    return TrainingSet(
        names=[clip.name for clip in clips],
        captions=[clip.caption for clip in clips],
        reports=reports,
        measured=held_out or seen[:MEASURED_WITHOUT_HELD_OUT],
        held_out=[clip.name for clip in held_out],
        preview=preview,
        content=clips_hash(clips),
        first=seen[:MEASURED_WITHOUT_HELD_OUT],
        batches=lambda plan, size: partial(batch_for, plan, seen, preview.no_caption, size),
    )


def prompt_of(options: TrainOptions, clips: Sequence[TrainingClip]) -> str:
    return clips[0].caption if options.preview_caption is None else options.preview_caption


def looked_at(session: Session, shards: Sequence[Shard]) -> list[ClipReport]:
    """Report the first clips of a large set, and log them.

    Raises:
        ValueError: one of them cannot be used; with --skip-bad a set may be good that begins with bad ones.
    """
    session.enter(Stage.CLIPS)
    options = session.options
    reports = peek(shards, LOOKED_AT, form_of(options))
    log.info("%s\nThese are the first of a set in %d parts.", table(reports), len(shards))
    if not options.skip_bad:
        usable_clips(reports, skip_bad=False)
    return reports


@dataclass(frozen=True)
class Pictures:
    """Pictures beside clips: their set, None for frames of the clips, and their share of all micro-batches."""

    shards: Sequence[Shard] | None
    share: float


def streamed_clips(
    session: Session,
    shards: Sequence[Shard],
    reports: list[ClipReport],
    base: Base,
    *,
    pictures: Pictures | None = None,
    look: FeatureModel | None = None,
    most_measured: int = 0,
) -> TrainingSet:
    """Encode the clips of a set of any size as training comes to them; those of the fixed-noise loss now.

    Args:
        pictures: None: clips alone.
        look: what gives each frame of a clip its features; None: they have none.
        most_measured: so many clips are encoded now at the least, for what is measured of a set before it trains.

    Raises:
        ValueError: fewer clips can be used than are to be held out.
    """
    session.enter(Stage.ENCODING)
    options, encoder = session.options, encoder_for(session, base, look)
    load = Loader(options.frames, options.fps, encoder.latents_of, encoder.text_of, look and encoder.features_of)
    with session.accelerator.main_process_first():
        first = first_clips(options, shards, load, most_measured)
        measured = first[: options.held_out or MEASURED_WITHOUT_HELD_OUT]
        preview = encoder.preview(prompt_of(options, measured))
    encoder.offload()
    held_out = [clip.name for clip in measured] if options.held_out else []
    streams = [stream_for(session, shards, load, held_out)]
    if pictures and pictures.shards:
        of_one = Loader(1, options.fps, encoder.latents_of_picture, encoder.text_of)
        streams.append(stream_for(session, pictures.shards, of_one))
    share = pictures.share if pictures else 0.0
    return TrainingSet(
        names=[shard.name for shard in shards],
        captions=[clip.caption for clip in measured],
        reports=reports,
        measured=measured,
        held_out=held_out,
        preview=preview,
        content=set_hash([*shards, *(pictures.shards or () if pictures else ())]),
        batches=partial(mixed_batches, session, streams, share, preview.no_caption, encoder.offload),
        first=first,
        position=lambda: tuple(stream.position for stream in streams),
        skip_to=partial(skip_all, streams),
    )


def first_clips(options: TrainOptions, shards: Sequence[Shard], load: Loader, least: int) -> list[TrainingClip]:
    """Return the first clips of a set: those of the fixed-noise loss, and `least` where there are so many."""
    wanted = options.held_out or MEASURED_WITHOUT_HELD_OUT
    first = first_usable(shards, max(wanted, least), load, options.skip_bad)
    if len(first) < options.held_out:
        raise ValueError(f"--held-out is {options.held_out}, but only {len(first)} clips can be used")
    return first


def mixed_batches(
    session: Session,
    streams: Sequence[ClipStream],
    share: float,
    no_caption: Tensor,
    offload: Callable[[], None],
    plan: Plan,
    size: int,
) -> BatchSource:
    """Return the source of a plan's micro-batches: of the first stream's clips, and a share of pictures of the last
    one, the first micro-batches of a step on every process."""

    def source(step: int, number: int) -> Batch:
        stills = pictures_in(step, session.options.accumulation, share)
        if number // session.accelerator.num_processes < stills:
            batch = batch_from(plan, streams[-1], no_caption, size, step, number, draw_picture)
        else:
            batch = batch_from(plan, streams[0], no_caption, size, step, number)
        offload()
        return batch

    return source


def skip_all(streams: Sequence[ClipStream], positions: tuple[int, ...]) -> None:
    for stream, position in zip(streams, positions, strict=True):
        stream.skip_to(position)


def stream_for(session: Session, shards: Sequence[Shard], load: Loader, held_out: Sequence[str] = ()) -> ClipStream:
    """Return this process's stream of a set."""
    options, accelerator = session.options, session.accelerator
    place = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    return ClipStream(shards, load, seed=options.seed, held_out=held_out, skip_bad=options.skip_bad, **place)
