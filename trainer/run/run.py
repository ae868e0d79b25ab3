"""The path that the commands which train share: from an image model, clips and an inflation to the motion file."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo
from ..base.ground import Ground
from ..base.load import Base
from ..clips.batches import Plan
from ..clips.cache import weights_hash
from ..clips.inspect import ClipReport, write_sheet
from ..config import as_toml, defaults_of, recorded
from ..losses.decoupling import Decoupling
from ..losses.objective import Objective
from ..options import FewShotOptions, SpatialOptions, TrainOptions
from ..show.progress import working
from .checkpoints import check_same_facts, facts_of, read_state, restore
from .estimate import blank_batch, report_estimate
from .export import library_versions
from .install import NO
from .lock import locked
from .loop import BatchSource, Training, start_training, train
from .milestones import Milestones
from .nearness import References, references_of
from .network import network_for
from .optimiser import Schedule
from .requests import Requests
from .result import export
from .runlog import RunLog
from .session import Session, Stage, check_alone
from .terms import terms_of
from .training_set import TrainingSet

log = logging.getLogger("stillmotion")


def train_and_export(
    session: Session,
    base: Base,
    clips: TrainingSet,
    start: Inflation,
    plan: Plan,
    decoupling: Decoupling | None = None,
) -> None:
    """Train an inflation on a set of clips, to the last step or to a request to stop, and export it.

    Args:
        start: the inflation before the first step.
        decoupling: what each clip is asked to be, see `Objective`.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it, and all is saved.
        ValueError: it is not the run that it should go on with, another one is in its folder, it does not fit into the
            GPU, or diverged.
    """
    with locked(session.options.output):
        check_alone(session)
        _train_and_export(session, base, clips, start, plan, decoupling)


def _train_and_export(
    session: Session,
    base: Base,
    clips: TrainingSet,
    start: Inflation,
    plan: Plan,
    decoupling: Decoupling | None,
) -> None:
    session.enter(Stage.ESTIMATE)
    options, accelerator = session.options, session.accelerator
    with working("preparing the network"):
        base_hash = weights_hash(base.unet)
        training = new_training(session, base, start, plan, decoupling)
    facts = run_facts(options, accelerator, clips.content, base_hash, base.ground)
    if session.save:
        resume(training, session.save, facts, defaults_of(type(options)))
    if training.positions:
        clips.skip_to(position_here(training.positions, accelerator.process_index, accelerator.num_processes))
    if training.step < options.steps:
        report_estimate(options, training, clips.first_batch(plan, options.batch_size))

    session.enter(Stage.TRAINING)
    if accelerator.is_main_process:
        write_record(options, clips.reports)
    run_log = start_log(options, training, clips.names, clips.held_out)
    info = motion_info(options, training, clips.captions, clips.factors, base.ground)
    references = references_for(options, training, clips, base)
    of_set = clips.measured, clips.preview, base.vae, clips.known
    milestones = Milestones(training, options, run_log, info, facts, *of_set, references)
    run(options, training, clips.batches(plan, options.batch_size), milestones, start, clips.position)


def references_for(options: TrainOptions, training: Training, clips: TrainingSet, base: Base) -> References | None:
    """Return what the previews of a motion are compared with, on the first process."""
    if not (isinstance(options, FewShotOptions) and options.preview_every and training.accelerator.is_main_process):
        return None
    return references_of(base.vae, clips.first, training.plan, training.accelerator.device)


def write_record(options: TrainOptions, reports: list[ClipReport]) -> None:
    """Write clips and options into the run's folder, once nothing refuses them: an older run's are replaced."""
    options.output.mkdir(parents=True, exist_ok=True)
    write_sheet(reports, options.output / "clips.png")
    (options.output / "options.toml").write_text(as_toml(options), encoding="utf-8")


def plan_of(session: Session, base: Base, **others) -> Plan:
    """Return what decides which numbers a step sees; `others` are its fields that not every command has.

    Raises:
        ValueError: mitigating gradients are asked for, and the base predicts the velocity.
    """
    options = session.options
    if options.mitigation and base.prediction != "epsilon":
        raise ValueError("--mitigation is for models that predict epsilon, and this base predicts the velocity: set 0")
    return Plan(
        seed=options.seed,
        frames=options.frames,
        cells=session.cells,
        clips_per_step=options.batch_size * options.accumulation * session.accelerator.num_processes,
        crop=options.crop,
        caption_dropout=options.caption_dropout,
        weighting=options.weighting,
        **{"schedule": base.schedule, "prediction": base.prediction, "zero_snr": base.zero_snr} | others,
    )


def spatial_rates(options: TrainOptions) -> dict[str, float]:
    if not isinstance(options, SpatialOptions):
        return {}
    return {"spatial_rate": options.spatial_lr_mult, "spatial_grad_scale": options.spatial_grad_scale}


def rehearse(session: Session, base: Base, start: Inflation, plan: Plan, decoupling: Decoupling | None = None) -> None:
    """Say how much memory and time a run would take, from a step on noise in place of its clips. Writes nothing."""
    session.enter(Stage.ESTIMATE)
    options, training = session.options, new_training(session, base, start, plan, decoupling)
    rows = options.batch_size, plan.frames
    report_estimate(options, training, blank_batch(training.objective.network, rows, plan.cells))
    goes_to = "" if options.install == NO else f", and the motion file into ComfyUI at {options.install}"
    log.info("A dry run: nothing was written. Without --dry-run the run goes to %s%s.", options.output, goes_to)


def new_training(session: Session, base: Base, start: Inflation, plan: Plan, decoupling: Decoupling | None) -> Training:
    """Start a run at step 0."""
    options, accelerator = session.options, session.accelerator
    network = network_for(options, base, copy.deepcopy(start))
    objective = Objective(network, plan, terms_of(options, network, plan), decoupling)
    schedule = Schedule(options.steps, options.learning_rate, options.warm_up, options.final_learning_rate)
    return start_training(
        accelerator,
        objective,
        schedule,
        batch_size=options.batch_size,
        ema=options.ema,
        eight_bit=options.eight_bit,
        **spatial_rates(options),
    )


def position_here(positions: Sequence[tuple[int, ...]], process: int, processes: int) -> tuple[int, ...]:
    """Return where a process goes on in its streams; where another number of them was there, after as many samples of
    all."""
    if len(positions) == processes:
        return positions[process]
    if any(positions):
        log.warning(
            "It ran on %d processes and goes on with %d: the clips of a set come in another order from here on.",
            *(len(positions), processes),
        )
    return tuple(sum(each) // processes for each in zip(*positions))


FREE_TO_CHANGE = {
    *("output", "resume", "dry_run", "install", "skip_bad", "cache", "caption", "held_out_every", "save_every", "keep"),
    *("preview_every", "preview_caption", "preview_steps", "guidance", "accumulation"),
}
"""Options that a resumed run may have other values of, because they change no weight; of micro-batches the number in a
step matters, on however many processes."""


def run_facts(
    options: TrainOptions, accelerator: Accelerator, clips_hash: str, base_hash: str, ground: Ground | None = None
) -> dict:
    """Return what a resumed run must have in common with the interrupted one; clips, base and ground count by their
    content."""
    matter = {name: value for name, value in options.model_dump(mode="json").items() if name not in FREE_TO_CHANGE}
    return {
        **matter,
        "videos": f"clips with the hash {clips_hash[:12]}",
        "base": f"a U-Net with the hash {base_hash[:12]}",
        **({"over": f"a motion model with the hash {ground.over.sha256[:12]}"} if ground else {}),
        "micro_batches": options.accumulation * accelerator.num_processes,
    }


def resume(training: Training, save: Path, facts: dict, defaults: dict) -> None:
    """Put a run where its save left it. Raise ValueError where it is not the same run."""
    state = read_state(save)
    check_same_facts(save, facts_of(state), facts, defaults)
    restore(training, state)
    log.info("Going on after step %d of %s.", training.step, save)


def start_log(options: TrainOptions, training: Training, clips: Sequence[str], held_out: Sequence[str]) -> RunLog:
    """Return the run's log, with a first line that says what it learns from: names of clips, or of parts of a large
    set."""
    run_log = RunLog(options.output, training.accelerator, training.step)
    training.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": training.step + 1}})
    run_log.event(
        event="start",
        step=training.step,
        options=options.model_dump(mode="json"),
        clips=list(clips),
        held_out=list(held_out),
        versions=library_versions(),
    )
    return run_log


def motion_info(
    options: TrainOptions,
    training: Training,
    captions: Sequence[str],
    factors: dict[str, list[float]],
    ground: Ground | None = None,
) -> MotionInfo:
    """Describe the motion file; of paths it keeps the last name, it is made to be shared.

    Not where it went and whether it was interrupted: its file says the same.
    """
    given = recorded(options)
    paths = {name: value.name for name in given if isinstance(value := getattr(options, name), Path)}
    return MotionInfo(
        config=training.inflation.config,
        structure=training.inflation.structure,
        schedule=training.plan.schedule,
        prediction=training.plan.prediction,
        zero_snr=training.plan.zero_snr,
        factors=factors,
        frames=options.frames,
        fps=options.fps,
        width=options.size[0],
        height=options.size[1],
        captions=tuple(sorted(set(captions))),
        options=given | paths,
        versions=library_versions(),
        over=ground.over if ground else None,
    )


def run(
    options: TrainOptions,
    training: Training,
    source: BatchSource,
    milestones: Milestones,
    start: Inflation,
    position: Callable[[], tuple[int, ...]] = tuple,
) -> None:
    """Train to the last step, or to a request to stop, and export.

    Args:
        start: the inflation as it was before the first step.
        position: how far this process is in its streams.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it, and all is saved.
        ValueError: processes do not begin at the same step.
    """
    accelerator = training.accelerator
    check_together(options, training)
    if training.step == 0:
        with working("measuring the loss before the first step"):
            milestones.measure()
    with Requests(options.output) as requests:
        finished = train(training, source, requests, milestones.after_step, position)
    if not finished:
        log.info("Stopped after step %d; --resume goes on.", training.step)
    else:
        export(options, training, milestones, start)
    accelerator.end_training()
    if requests.interrupted:
        raise KeyboardInterrupt


def check_together(options: TrainOptions, training: Training) -> None:
    """Make sure that every process, on whatever machine, found the same save."""
    steps = training.accelerator.gather(torch.tensor([training.step], device=training.accelerator.device))
    if steps.min() < steps.max():
        raise ValueError(
            f"The processes are at steps {sorted(set(steps.tolist()))}: --output {options.output} must be one folder"
            " that all machines share."
        )
