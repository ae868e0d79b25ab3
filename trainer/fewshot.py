"""`python -m trainer fewshot`: a handful of clips in, a motion file and a workflow that uses it out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..networks.config import Frames, InflationConfig, Memory, Queries, Temporal
from ..networks.motion_file import MotionInfo
from ..networks.sites import Structure
from .base import Base, encode_captions, encode_frames, load_base
from .batches import Plan, TrainingClip, batch_for, fingerprint
from .cache import caption_embedding, clip_latents
from .cache import fingerprint as weights_of
from .check import Report, inspect_clips, table, usable_clips, write_sheet
from .checkpoints import check_same_facts, facts_of, read_state, restore
from .clips import Source
from .config import as_toml
from .estimate import advice, estimate_memory, time_step
from .export import delta_rms, exported_weights, fresh_inflation, library_versions, report_deltas, write_and_open
from .held_out import split_held_out
from .host import InflatedUNet, structure_of
from .loop import Training, backward, start_training, train
from .milestones import Milestones, free_memory, last_save, run_name
from .optimiser import Schedule
from .options import FewShotOptions
from .previews import Preview, first_frame_of
from .processes import make_accelerator, resolved_precision
from .requests import Requests
from .runlog import RunLog
from .workflow import write_workflow

log = logging.getLogger("stillmotion")

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

MEASURED_WITHOUT_HELD_OUT = 4
"""So many training clips are measured with fixed noise where none were held out."""


def fewshot(options: FewShotOptions) -> None:
    """Learns one motion from a handful of clips."""
    save = last_save(options)
    options = options.model_copy(update={"precision": resolved_precision(options)})
    accelerator = make_accelerator(options)
    reports = inspect_clips(options)
    log.info("%s", table(reports))
    sources = usable_clips(reports, options.skip_bad)

    log.info("Loading %s and encoding the clips …", options.base)
    base = load_base(options.base)
    check_objective(options, base)
    clips, preview = encode(options, base, sources, accelerator)
    seen, held_out = split_held_out(clips, options.held_out)
    base_hash, structure = weights_of(base.unet), structure_of(base.unet)

    training = new_training(options, base, structure, accelerator)
    facts = run_facts(options, accelerator, clips, base_hash)
    if save:
        state = read_state(save)
        check_same_facts(save, facts_of(state), facts)
        restore(training, state)
        log.info("Going on after step %d of %s.", training.step, save)
    if training.step < options.steps:
        report_estimate(options, training, seen, preview.no_caption)

    if accelerator.is_main_process:
        write_record(options, reports)
    run_log = start_log(options, training, sources, held_out)
    info = motion_info(options, structure, clips)
    measured = held_out or seen[:MEASURED_WITHOUT_HELD_OUT]
    milestones = Milestones(training, options, run_log, info, facts, measured, preview, base.vae)
    if training.step == 0 and accelerator.is_main_process:
        milestones.measure()
    with Requests(options.output) as requests, logging_redirect_tqdm():
        finished = train(training, seen, preview.no_caption, requests, milestones.after_step)
    if not finished:
        log.info("Stopped after step %d; --resume goes on.", training.step)
    elif accelerator.is_main_process:
        export(options, training, info, run_log, preview.caption)
    accelerator.end_training()
    if requests.interrupted:
        raise KeyboardInterrupt


def check_objective(options: FewShotOptions, base: Base) -> None:
    """The loss is that of models which predict the noise on Stable Diffusion's own schedule; refuses others."""
    if (base.schedule, base.prediction) != ("scaled_linear", "epsilon"):
        raise ValueError(
            f"{options.base} predicts {base.prediction} on the schedule {base.schedule}; few-shot training knows"
            " epsilon on scaled_linear, as SD1.5 has them"
        )


def write_record(options: FewShotOptions, reports: Sequence[Report]) -> None:
    """Clips and options into the run's folder, once nothing refuses them any more: an older run's are replaced."""
    options.output.mkdir(parents=True, exist_ok=True)
    write_sheet(reports, options.output / "clips.png")
    (options.output / "options.toml").write_text(as_toml(options), encoding="utf-8")


@torch.no_grad()
def encode(
    options: FewShotOptions, base: Base, sources: Sequence[Source], accelerator: Accelerator
) -> tuple[list[TrainingClip], Preview]:
    """Latents and captions from the cache or encoded now, by the first process; the others then find them there."""
    device = accelerator.device

    def encode_there(vae, frames: Tensor) -> Tensor:
        return encode_frames(vae, frames.to(device))

    base.vae.to(device)
    base.text_encoder.to(device)
    vae_hash, text_hash = weights_of(base.vae), weights_of(base.text_encoder)

    def text_of(caption: str) -> Tensor:
        return caption_embedding(caption, base, options.cache, encode_captions, text_hash)

    with accelerator.main_process_first():
        clips = [
            TrainingClip(
                source.name,
                source.caption,
                clip_latents(source, options, base, options.cache, encode_there, vae_hash).float(),
                text_of(source.caption).float(),
            )
            for source in tqdm(sources, desc="encoding", unit="clip", disable=not accelerator.is_main_process)
        ]
        caption = clips[0].caption if options.preview_caption is None else options.preview_caption
        text, no_caption = text_of(caption).float(), text_of("").float()
    base.vae.cpu()
    base.text_encoder.cpu()
    first = first_frame_of(clips[0], cells_of(options)) if options.first_frame == "clean" else None
    sampling = (options.seed, options.preview_steps, options.guidance, options.fps, first)
    return clips, Preview(caption, text, no_caption, *sampling)


def cells_of(options: FewShotOptions) -> tuple[int, int]:
    return options.size[0] // 8, options.size[1] // 8


def inflation_config(options: FewShotOptions) -> InflationConfig:
    return InflationConfig(
        temporal=Temporal() if options.temporal_blocks else None,
        frames=Frames() if options.frame_attention else None,
        memory=None if options.memory == "none" else Memory(options.memory),
        queries={"none": None, "full": Queries(None), "lora": Queries(options.rank)}[options.queries],
    )


def new_training(options: FewShotOptions, base: Base, structure: Structure, accelerator: Accelerator) -> Training:
    """A run at step 0: the frozen U-Net in the type it computes in, what trains in float32."""
    inflation = fresh_inflation(inflation_config(options), structure, options.seed)
    if options.precision != "fp32":
        base.unet.to(TYPES[options.precision])
    model = InflatedUNet(base.unet, inflation, checkpointing=options.checkpointing)
    plan = Plan(
        seed=options.seed,
        frames=options.frames,
        cells=cells_of(options),
        clips_per_step=options.batch_size * options.accumulation * accelerator.num_processes,
        crop=options.crop,
        caption_dropout=options.caption_dropout,
        first_frame=options.first_frame,
        weighting=options.weighting,
    )
    schedule = Schedule(options.steps, options.learning_rate, options.warm_up)
    return start_training(
        accelerator,
        model,
        plan,
        schedule,
        batch_size=options.batch_size,
        average=options.ema,
        eight_bit=options.eight_bit,
    )


FREE_TO_CHANGE = {
    *("output", "resume", "skip_bad", "cache", "caption", "held_out_every", "save_every", "keep"),
    *("preview_every", "preview_caption", "preview_steps", "guidance"),
}
"""Options that a resumed run may have other values of, because they change no weight."""


def run_facts(options: FewShotOptions, accelerator: Accelerator, clips: Sequence[TrainingClip], base_hash: str) -> dict:
    """What a resumed run must have in common with the interrupted one; clips and base count by their content."""
    matter = {name: value for name, value in options.model_dump(mode="json").items() if name not in FREE_TO_CHANGE}
    return {
        **matter,
        "videos": f"clips with the hash {fingerprint(clips)[:12]}",
        "base": f"a U-Net with the hash {base_hash[:12]}",
        "num_processes": accelerator.num_processes,
    }


def report_estimate(
    options: FewShotOptions, training: Training, clips: Sequence[TrainingClip], no_caption: Tensor
) -> None:
    """Logs the memory a step will take before the first one runs, then how long it took and the run will take.

    Raises:
        ValueError: the step did not fit into the GPU's memory.
    """
    accelerator, plan = training.accelerator, training.plan
    memory = estimate_memory(
        accelerator.unwrap_model(training.model),
        (options.batch_size, plan.frames),
        plan.cells,
        average=options.ema is not None,
        eight_bit=options.eight_bit,
    )
    log.info("Memory of a step, estimated: %s", memory)
    free = free_memory(accelerator.device)
    on_device = memory.frozen + memory.trained + memory.average
    hint = free and advice(memory, free + on_device, checkpointing=options.checkpointing, precision=options.precision)
    if hint:
        log.warning("%s", hint)
    batch = batch_for(plan, clips, no_caption, 1, accelerator.process_index, options.batch_size)
    try:
        seconds = time_step(lambda: backward(training, batch), 2 if free else 1) * options.accumulation
    except torch.OutOfMemoryError as error:
        raise ValueError(f"A step does not fit into the GPU's memory. {hint or ''}") from error
    training.optimizer.zero_grad()
    left = options.steps - training.step
    log.info("A step takes %.2f s: %d steps about %s.", seconds, left, tqdm.format_interval(left * seconds))


def start_log(
    options: FewShotOptions, training: Training, sources: Sequence[Source], held_out: Sequence[TrainingClip]
) -> RunLog:
    run_log = RunLog(options.output, training.accelerator, training.step)
    training.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": training.step + 1}})
    run_log.event(
        event="start",
        step=training.step,
        options=options.model_dump(mode="json"),
        clips=[source.name for source in sources],
        held_out=[clip.name for clip in held_out],
        versions=library_versions(),
    )
    return run_log


def motion_info(options: FewShotOptions, structure: Structure, clips: Sequence[TrainingClip]) -> MotionInfo:
    """What the motion file says of itself; of paths it keeps the last name, it is made to be shared."""
    paths = {name: getattr(options, name).name for name in ("videos", "base", "output", "cache")}
    return MotionInfo(
        config=inflation_config(options),
        structure=structure,
        frames=options.frames,
        fps=options.fps,
        width=options.size[0],
        height=options.size[1],
        captions=tuple(sorted({clip.caption for clip in clips})),
        options=options.model_dump(mode="json") | paths,
        versions=library_versions(),
    )


def export(options: FewShotOptions, training: Training, info: MotionInfo, run_log: RunLog, caption: str) -> None:
    """Writes the motion file, opens it as the nodes do, says how far it moved, and writes a workflow that uses it."""
    name, tensors = run_name(options), exported_weights(training)
    path, workflow = options.output / f"{name}.safetensors", options.output / f"{name}_workflow.json"
    write_and_open(path, tensors, info)
    log.info("Wrote %s; its modules moved from their start by (RMS):", path)
    modules = delta_rms(tensors, fresh_inflation(info.config, info.structure, options.seed))
    run_log.event(event="export", step=training.step, delta_rms=report_deltas(modules), modules=modules)
    base = options.base.absolute()  # so that "." has a name
    write_workflow(workflow, base.name, path.name, info, caption, base_is_folder=base.is_dir())
    log.info("Put it into ComfyUI's models/stillmotion and open %s there.", workflow)
