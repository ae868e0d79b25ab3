"""`python -m trainer decouple`: HiGen's training, from clips and pictures to clips of a still with two dials."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from ...networks.presets import with_condition
from ..base.features import LATENT, feature_model
from ..base.host import structure_of
from ..clips.factors import factors_of, spread, told, warn_of_spread
from ..clips.pictures import picture_shards
from ..clips.shards import shards_of
from ..losses.decoupling import Decoupling, measured
from ..options import DecoupleOptions
from ..run.architecture import check_frames, decoupled, inflation_config
from ..run.known_tasks import with_tasks
from ..run.run import plan_of, rehearse, train_and_export
from ..run.session import begin, load_image_model
from ..run.training_set import Pictures, TrainingSet, looked_at, streamed_clips
from ..run.warm_start import starting_inflation

log = logging.getLogger("stillmotion")

MEASURED = 64
"""So many clips are measured before training, for the range of either factor."""


def decouple(options: DecoupleOptions, decoupling: Decoupling | None = None) -> None:
    """Learn clips of a still, how much moves in them, and how much their look changes.

    Args:
        decoupling: how clips are asked; None: as the options say.
    """
    session = begin(options)
    look = feature_model(options.features)
    shards, stills = shards_of(options.videos, options.caption), pictures_of(options)
    reports = looked_at(session, shards)
    base = load_image_model(session)
    structure = structure_of(base.unet)
    features = look.name if look else str(LATENT)
    config = decoupled(inflation_config(options, options.frames, structure), options, features)
    config = with_condition(config) if options.condition else config
    start = starting_inflation(options, config, structure, options.seed)
    check_frames(options, start.config, structure)
    plan = plan_of(session, base, schedule=options.schedule, offset_noise=options.offset_noise)
    decoupling = decoupling or decoupling_of(options)
    if options.dry_run:
        return rehearse(session, base, start, plan, decoupling)
    clips = streamed_clips(session, shards, reports, base, pictures=stills, look=look, most_measured=MEASURED)
    clips = with_factors(clips, options)
    clips = with_tasks(session, clips, options.shares, base.vae) if options.condition else clips
    train_and_export(session, base, clips, start, plan, decoupling)


def decoupling_of(options: DecoupleOptions) -> Decoupling:
    measure = partial(measured, norm=options.motion_norm)
    return Decoupling(options.prior_dropout, options.factor_dropout, measure)


def pictures_of(options: DecoupleOptions) -> Pictures | None:
    """Return the pictures that the image model trains on, None where it is frozen or has none."""
    if options.spatial == "frozen" or not options.image_share:
        return None
    if options.images is None:
        log.info("No --images: of every %g micro-batches one is of frames of the clips.", 1 / options.image_share)
    shards = None if options.images is None else picture_shards(options.images)
    return Pictures(shards, options.image_share)


def with_factors(clips: TrainingSet, options: DecoupleOptions) -> TrainingSet:
    """Measure the first clips, say how their factors vary, and show previews at those."""
    ranges = spread([factors_of(clip, options.frames, options.motion_norm) for clip in clips.first])
    log.info("%d clips have %s.", len(clips.first), told(ranges))
    warn_of_spread(ranges)
    motions = ranges["motion"] if options.motion else ranges["motion"][1:2]
    preview = replace(clips.preview, motions=tuple(motions), appearance=ranges["appearance"][1])
    return replace(clips, factors=ranges, preview=preview)
