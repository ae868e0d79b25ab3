"""`python -m trainer inflate`: a set of clips in, a motion file that makes a video model of an image model out."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

from torch import Tensor

from ...networks.config import InflationConfig, Mapping, Resampling, Tokens
from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo
from ...networks.presets import PRESETS
from ...networks.sites import Structure
from ..base.host import structure_of
from ..base.load import check_exists, load_base
from ..clips.batches import Batch, batch_for, batch_from
from ..clips.cache import fingerprint as weights_of
from ..clips.inspect import table, usable_clips
from ..clips.shards import fingerprint, shards_of
from ..clips.stream import ClipStream, Loader, first_usable, peek
from ..losses.objectives import Harivo, Weights, check_middle
from ..options import InflateOptions
from ..run.export import fresh_inflation
from ..run.milestones import Milestones, last_save
from ..run.processes import make_accelerator, resolved_precision
from ..run.run import (
    MEASURED_WITHOUT_HELD_OUT,
    Encoder,
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
from .convert import described, read_input

log = logging.getLogger("stillmotion")

LOOKED_AT = 16
"""So many clips of a set are decoded and shown before training; the others are checked when their turn comes."""

NOTHING_OF_AN_IMAGE = {"convolution", "transformer"}
"""Kinds of blocks that leave a clip of one frame alone. They would get no gradients, which other processes wait for."""


def inflate(options: InflateOptions) -> None:
    """Learns motion in general from a set of captioned clips of any size."""
    save = last_save(options)
    check_exists(options.base)
    options = options.model_copy(update={"precision": resolved_precision(options)})
    accelerator = make_accelerator(options)
    shards = shards_of(options.videos, options.caption)
    reports = peek(shards, LOOKED_AT, options)
    log.info("%s\nThese are the first of a set in %d parts.", table(reports), len(shards))
    if not options.skip_bad:  # else a set may be good that begins with bad ones
        usable_clips(reports, skip_bad=False)

    log.info("Loading %s …", options.base)
    base = load_base(options.base)
    check_objective(options, base)
    base_hash, structure = weights_of(base.unet), structure_of(base.unet)
    start = starting_inflation(options, structure)
    check_frames(options, start.config, structure)
    encoder = Encoder(options, base, accelerator.device)
    load = Loader(options.frames, options.fps, encoder.latents_of, encoder.text_of)
    with accelerator.main_process_first():
        measured = first_usable(shards, options.held_out or MEASURED_WITHOUT_HELD_OUT, load, options.skip_bad)
        if len(measured) < options.held_out:
            raise ValueError(f"--held-out is {options.held_out}, but only {len(measured)} clips can be used")
        preview = encoder.preview(measured[0].caption)
    encoder.leave()

    network = network_for(options, base, copy.deepcopy(start))
    plan = plan_of(options, accelerator, schedule=options.schedule)
    training = new_training(options, accelerator, Harivo(network, plan, weights_of_losses(options), options.queue))
    facts = run_facts(options, accelerator, fingerprint(shards), base_hash)
    if save:
        go_on(training, save, facts)
    held_out = [clip.name for clip in measured] if options.held_out else []
    stream = ClipStream(
        shards,
        load,
        seed=options.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        held_out=held_out,
        skip_bad=options.skip_bad,
    )
    if training.positions:
        stream.skip_to(training.positions[accelerator.process_index])

    def source(step: int, number: int) -> Batch:
        batch = batch_from(plan, stream, preview.no_caption, options.batch_size, step, number)
        encoder.leave()
        return batch

    if training.step < options.steps:
        report_estimate(options, training, batch_for(plan, measured, preview.no_caption, options.batch_size, 1, 0))

    if accelerator.is_main_process:
        write_record(options, reports)
    run_log = start_log(options, training, [shard.name for shard in shards], held_out)
    info = motion_info(options, training, [clip.caption for clip in measured])
    milestones = Milestones(training, options, run_log, info, facts, measured, preview, base.vae)
    run(options, training, source, milestones, start, lambda: stream.position)


def inflation_config(options: InflateOptions, structure: Structure) -> InflationConfig:
    """The preset, with what the options change of it.

    Raises:
        ValueError: the U-Net has no such levels, or nothing of what an option changes.
    """
    config = PRESETS[options.preset](structure, options.frames)
    if options.halve is not None:
        config = replace(config, resampling=halved(options.halve, structure))
    if options.narrow:
        if "factorised" not in config.temporal.kinds:
            raise ValueError(f"--narrow is for Lumiere's convolution blocks, which the preset {options.preset} has not")
        config = replace(config, temporal=replace(config.temporal, narrow=True))
    if options.mapping is not None:
        config = replace(config, mapping=Mapping() if options.mapping else None)
    if options.tokens is not None:
        config = replace(config, tokens=Tokens(options.frames) if options.tokens else None)
    return config


def halved(levels: tuple[int, ...], structure: Structure) -> Resampling | None:
    if not levels:
        return None
    try:
        resampling = Resampling(levels)
        resampling.check(structure)
    except ValueError as error:
        raise ValueError(f"--halve has {error}") from None
    return resampling


def check_frames(options: InflateOptions, config: InflationConfig, structure: Structure) -> None:
    """Raises ValueError where too few frames are left at a level for what learns there."""
    if options.contrastive:
        check_middle(config, options.frames)
    for level in range(len(structure.levels)):
        idle = NOTHING_OF_AN_IMAGE.intersection(config.temporal.at_level(level))
        if idle and config.frames_at(level, options.frames) == 1:
            raise ValueError(
                f"--preset {options.preset} learns from neighbouring frames at every level, and at level {level} the"
                f" {options.frames} have become one: give more --frames, or --halve them at fewer levels"
            )


def starting_inflation(options: InflateOptions, structure: Structure) -> Inflation:
    """The inflation before the first step: new, the same for the same seed, or with weights of another file in it.

    Raises:
        FileNotFoundError, ValueError: that file cannot be read, or has nothing that could be used.
    """
    config = inflation_config(options, structure)
    if options.warm_start is None:
        return fresh_inflation(config, structure, options.seed)
    info, tensors = read_input(options.warm_start)
    inflation = fresh_inflation(as_trained(config, info.config), structure, options.seed)
    take_over(options, inflation, info, tensors)
    return inflation


def as_trained(config: InflationConfig, other: InflationConfig) -> InflationConfig:
    """The config with blocks over time as another has them, where these are of the same kinds.

    No tensor tells what a norm sees, whether frames have positions, and how many heads there are.
    """
    ours, theirs = config.temporal, other.temporal
    if not ours or not theirs or ours.levels != theirs.levels:
        return config
    return replace(config, temporal=replace(theirs, narrow=ours.narrow))


def take_over(options: InflateOptions, inflation: Inflation, info: MotionInfo, tensors: dict[str, Tensor]) -> None:
    """Puts those tensors of a motion file of any kind into an inflation that it has, too."""
    own, path = inflation.state_dict(), options.warm_start
    used = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if not used:
        raise ValueError(
            f"--warm-start {path} has nothing that this run trains, as its --preset is {options.preset}; what is there"
            f" is {described(info)}"
        )
    inflation.load_state_dict(own | used)
    log.info(
        "%d of the %d tensors that train begin as in %s; %d of its %d are not used.",
        *(len(used), len(own), path, len(tensors) - len(used), len(tensors)),
    )
    if info.schedule != options.schedule:
        log.warning("%s was trained on the noise schedule %s; --schedule is %s.", path, info.schedule, options.schedule)


def weights_of_losses(options: InflateOptions) -> Weights:
    return Weights(
        regularisation=options.regularisation,
        regularise_every=options.regularise_every,
        detach_image=options.detach_image,
        trs=options.trs,
        trs_reduction=options.trs_reduction,
        contrastive=options.contrastive,
        ramp=options.ramp,
    )
