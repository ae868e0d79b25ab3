"""`python -m trainer fewshot`: a handful of clips in, a motion file and a workflow that uses it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from accelerate import Accelerator
from tqdm import tqdm

from ...networks.config import Frames, InflationConfig, Memory, Queries, Temporal
from ..base.host import structure_of
from ..base.load import check_exists, load_base
from ..clips.batches import TrainingClip, batch_for, fingerprint
from ..clips.cache import fingerprint as weights_of
from ..clips.find import Source
from ..clips.inspect import inspect_clips, table, usable_clips
from ..losses.objectives import Denoising
from ..options import FewShotOptions
from ..run.export import fresh_inflation
from ..run.held_out import split_held_out
from ..run.milestones import Milestones, last_save
from ..run.previews import Preview, first_frame_of
from ..run.processes import make_accelerator, resolved_precision
from ..run.run import (
    MEASURED_WITHOUT_HELD_OUT,
    Encoder,
    cells_of,
    check_objective,
    go_on,
    motion_info,
    network_for,
    new_training,
    plan_of,
    report_estimate,
    run,
    run_facts,
    start_log,
    write_record,
)

log = logging.getLogger("stillmotion")


def fewshot(options: FewShotOptions) -> None:
    """Learns one motion from a handful of clips."""
    save = last_save(options)
    check_exists(options.base)
    options = options.model_copy(update={"precision": resolved_precision(options)})
    accelerator = make_accelerator(options)
    reports = inspect_clips(options)
    log.info("%s", table(reports))
    sources = usable_clips(reports, options.skip_bad)

    log.info("Loading %s and encoding the clips …", options.base)
    base = load_base(options.base)
    check_objective(options, base)
    clips, preview = encode(options, Encoder(options, base, accelerator.device), sources, accelerator)
    seen, held_out = split_held_out(clips, options.held_out)
    base_hash, structure = weights_of(base.unet), structure_of(base.unet)

    start = fresh_inflation(inflation_config(options), structure, options.seed)
    plan = plan_of(options, accelerator, first_frame=options.first_frame)
    network = network_for(options, base, fresh_inflation(start.config, structure, options.seed))
    training = new_training(options, accelerator, Denoising(network, plan))
    facts = run_facts(options, accelerator, fingerprint(clips), base_hash)
    if save:
        go_on(training, save, facts)
    source = partial(batch_for, plan, seen, preview.no_caption, options.batch_size)
    if training.step < options.steps:
        report_estimate(options, training, source(1, accelerator.process_index))

    if accelerator.is_main_process:
        write_record(options, reports)
    run_log = start_log(options, training, [s.name for s in sources], [clip.name for clip in held_out])
    info = motion_info(options, training, [clip.caption for clip in clips])
    measured = held_out or seen[:MEASURED_WITHOUT_HELD_OUT]
    milestones = Milestones(training, options, run_log, info, facts, measured, preview, base.vae)
    run(options, training, source, milestones, start)


def encode(
    options: FewShotOptions, encoder: Encoder, sources: Sequence[Source], accelerator: Accelerator
) -> tuple[list[TrainingClip], Preview]:
    """Latents and captions from the cache or encoded now, by the first process; the others then find them there."""
    with accelerator.main_process_first():
        clips = [
            TrainingClip(source.name, source.caption, encoder.latents_of(source), encoder.text_of(source.caption))
            for source in tqdm(sources, desc="encoding", unit="clip", disable=not accelerator.is_main_process)
        ]
        first = first_frame_of(clips[0], cells_of(options)) if options.first_frame == "clean" else None
        preview = encoder.preview(clips[0].caption, first)
    encoder.leave()
    return clips, preview


def inflation_config(options: FewShotOptions) -> InflationConfig:
    return InflationConfig(
        temporal=Temporal() if options.temporal_blocks else None,
        frames=Frames() if options.frame_attention else None,
        memory=None if options.memory == "none" else Memory(options.memory),
        queries={"none": None, "full": Queries(None), "lora": Queries(options.rank)}[options.queries],
    )
