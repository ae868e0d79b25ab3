"""`python -m trainer inflate`: a set of clips in, a motion file that makes a video model of an image model out."""

from __future__ import annotations

from ...networks.presets import with_condition
from ..base.host import structure_of
from ..clips.shards import shards_of
from ..options import InflateOptions
from ..run.architecture import check_frames, inflation_config
from ..run.known_tasks import with_tasks
from ..run.run import plan_of, rehearse, train_and_export
from ..run.session import begin, load_image_model
from ..run.training_set import looked_at, streamed_clips
from ..run.warm_start import starting_inflation


def inflate(options: InflateOptions) -> None:
    """Learn motion in general from a set of captioned clips of any size."""
    session = begin(options)
    shards = shards_of(options.videos, options.caption)
    reports = looked_at(session, shards)
    base = load_image_model(session)
    structure = structure_of(base.unet)
    config = inflation_config(options, options.frames, structure)
    config = with_condition(config) if options.condition else config
    start = starting_inflation(options, config, structure, options.seed)
    check_frames(options, start.config, structure)
    plan = plan_of(session, base, schedule=options.schedule)
    if options.dry_run:
        return rehearse(session, base, start, plan)
    clips = streamed_clips(session, shards, reports, base)
    clips = with_tasks(session, clips, options.shares, base.vae) if options.condition else clips
    train_and_export(session, base, clips, start, plan)
