"""`python -m trainer fewshot`: a handful of clips in, a motion file and a workflow that uses it out."""

from __future__ import annotations

import logging

from ...networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from ..base.host import structure_of
from ..clips.find import find_clips
from ..clips.inspect import inspect_clips, table, usable_clips
from ..options import FewShotOptions
from ..run.export import fresh_inflation
from ..run.run import plan_of, train_and_export
from ..run.session import begin, load_image_model
from ..run.training_set import clips_in_memory, form_of

log = logging.getLogger("stillmotion")


def fewshot(options: FewShotOptions) -> None:
    """Learn one motion from a handful of clips."""
    session = begin(options)
    reports = inspect_clips(find_clips(options.videos, options.caption), form_of(options))
    log.info("%s", table(reports))
    usable_clips(reports, options.skip_bad)
    base = load_image_model(options.base)
    clips = clips_in_memory(session, reports, base, options.first_frame)
    start = fresh_inflation(inflation_config(options), structure_of(base.unet), options.seed)
    train_and_export(session, base, clips, start, plan_of(session, base, first_frame=options.first_frame))


def inflation_config(options: FewShotOptions) -> InflationConfig:
    """Return the parts that train, each of which an option can leave out."""
    return InflationConfig(
        temporal=Temporal() if options.temporal_blocks else None,
        frame_attention=CrossFrames(options.frame_heads) if options.frame_attention else None,
        recurrence=None if options.recurrence == "none" else Recurrence(options.recurrence),
        queries={"none": None, "full": Queries(None), "lora": Queries(options.rank)}[options.queries],
    )
