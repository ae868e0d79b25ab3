"""`python -m trainer fewshot`: a handful of clips in, a motion file and a workflow that uses it out."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal, TemporalLora
from ..base.ground import Ground
from ..base.host import structure_of
from ..clips.find import camera_of, find_clips
from ..clips.inspect import inspect_clips, refuse_without_captions, table, usable_clips
from ..options import FewShotOptions
from ..run.export import fresh_inflation
from ..run.over import ground_of, tell_of_grounds, with_defaults, with_ground
from ..run.run import plan_of, rehearse, train_and_export
from ..run.session import Stage, begin, load_image_model
from ..run.training_set import clips_in_memory, form_of

log = logging.getLogger("stillmotion")


def fewshot(options: FewShotOptions) -> None:
    """Learn one motion from a handful of clips."""
    session = begin(options)
    ground = ground_of(options)
    options = with_defaults(session.options, ground)
    session = replace(session, options=options)
    session.enter(Stage.CLIPS)
    sources = find_clips(options.videos, options.caption, camera_of(options, options.frames))
    refuse_without_captions([source.problem for source in sources])
    reports = inspect_clips(sources, form_of(options))
    log.info("%s", table(reports))
    usable_clips(reports, options.skip_bad)
    base = load_image_model(session)
    if ground:
        base = with_ground(base, ground)
    else:
        tell_of_grounds(base)
    start = fresh_inflation(inflation_config(options, ground), structure_of(base.unet), options.seed)
    plan = plan_of(session, base, first_frame=options.first_frame)
    if options.dry_run:
        return rehearse(session, base, start, plan)
    clips = clips_in_memory(session, reports, base, options.first_frame)
    train_and_export(session, base, clips, start, plan)


def inflation_config(options: FewShotOptions, ground: Ground | None = None) -> InflationConfig:
    """Return the parts that train, each of which an option can leave out; some change a ground."""
    rank = options.temporal_lora
    return InflationConfig(
        temporal=Temporal() if options.temporal_blocks else None,
        frame_attention=CrossFrames(options.frame_heads) if options.frame_attention else None,
        recurrence=None if options.recurrence == "none" else Recurrence(options.recurrence),
        queries={"none": None, "full": Queries(None), "lora": Queries(options.rank)}[options.queries],
        temporal_lora=TemporalLora.on(ground.info.config, rank) if ground and rank else None,
    )
