"""`python -m trainer condition`: Lumiere's conditional generation, from a motion file or from nothing."""

from __future__ import annotations

import logging

from torch import Tensor

from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo, check_fits
from ...networks.presets import with_condition
from ...networks.sites import Structure
from ..base.ground import check_whole
from ..base.host import structure_of
from ..base.motion_module import read_motion_module
from ..clips.shards import shards_of
from ..options import ConditionOptions
from ..run.architecture import check_frames, inflation_config
from ..run.export import fresh_inflation
from ..run.known_tasks import decoupling_for, with_tasks
from ..run.run import plan_of, rehearse, train_and_export
from ..run.session import begin, load_image_model
from ..run.training_set import looked_at, streamed_clips
from ..run.warm_start import take_over

log = logging.getLogger("stillmotion")

Started = tuple[MotionInfo, dict[str, Tensor]]
"""A motion file that a run starts from."""


def condition(options: ConditionOptions) -> None:
    """Learn to make a clip of its known pixels, in all tasks that have a share."""
    session = begin(options)
    found = read_motion_module(options.init) if options.init else None
    shards = shards_of(options.videos, options.caption)
    reports = looked_at(session, shards)
    base = load_image_model(session)
    structure = structure_of(base.unet)
    start = starting_inflation(options, found, structure)
    decoupling = decoupling_for(start.config)
    check_frames(options, start.config, structure)
    plan = plan_of(session, base, schedule=schedule_of(options, found, base.schedule))
    if options.dry_run:
        return rehearse(session, base, start, plan, decoupling)
    clips = with_tasks(session, streamed_clips(session, shards, reports, base), options.shares, base.vae)
    train_and_export(session, base, clips, start, plan, decoupling)


def starting_inflation(options: ConditionOptions, found: Started | None, structure: Structure) -> Inflation:
    """Return the parts of a motion file, or of a preset, with a stem for known pixels, new unless the file has one.

    Raises:
        ValueError: the file was made for another U-Net, or was learnt on top of another file.
    """
    if found is None:
        return fresh_inflation(
            with_condition(inflation_config(options, options.frames, structure)), structure, options.seed
        )
    info, tensors = found
    check_whole(options.init, info, "give that file to --init")
    check_fits(options.init, info, structure)
    config = info.config if info.config.condition else with_condition(info.config)
    inflation = fresh_inflation(config, structure, options.seed)
    take_over(options.init, options.preset, inflation, info, tensors)
    return inflation


def schedule_of(options: ConditionOptions, found: Started | None, of_base: str) -> str:
    """Return the noise schedule: the one that is asked for, or that the motion file was trained on."""
    own = found[0].schedule if found else of_base
    if options.schedule and found and options.schedule != own:
        log.warning("%s was trained on the schedule %s; --schedule is %s.", options.init, own, options.schedule)
    return options.schedule or own
