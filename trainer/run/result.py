"""What a run leaves behind: the motion file, what trained of the image model, and a workflow that uses them."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from torch import Tensor

from ...networks.atomic import replacing, write_durably
from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo
from ...networks.tensor_file import write_tensors
from ..base.auto import listed_name
from ..base.spatial import Loras, exported
from ..options import TrainOptions
from .displacement import report
from .export import exported_weights, write_result
from .install import NO, install
from .loop import Training
from .milestones import Milestones
from .nearness import recommendation
from .runlog import read_log
from .saves import run_name, saves_of
from .workflow import write_workflow

log = logging.getLogger("stillmotion")


def export(options: TrainOptions, training: Training, milestones: Milestones, start: Inflation) -> None:
    """Write the motion file, open it as the nodes do, say how far it moved, and write a workflow that uses it."""
    name, tensors, info = run_name(options), exported_weights(training), milestones.info
    spatial = exported_weights(training, "spatial") if "spatial" in training.weights else {}
    if not training.accelerator.is_main_process:
        return
    write_spatial(options, training, spatial)
    path = options.output / f"{name}.safetensors"
    write_result(path, tensors, info)
    log.info("Wrote %s; its modules moved from their start by (RMS):", path)
    milestones.run_log.event(
        event="export", step=training.step, **report(tensors, start, training.schedule.path(training.step))
    )
    told = recommendation(read_log(milestones.run_log.path), sorted(saves_of(options).glob("*.safetensors")))
    if told:
        log.info("%s", told)
    install(options.install, path, partial(workflow_for, options, info, milestones.preview.caption))


def workflow_for(options: TrainOptions, info: MotionInfo, caption: str, motion: str) -> Path:
    """Write the workflow that uses a motion file of this name, and return where it is."""
    path = options.output / f"{run_name(options)}_workflow.json"
    base = listed_name(options.base, [] if options.install == NO else [options.install])
    write_workflow(path, base, motion, info, caption, base_is_folder=options.base.is_dir())
    return path


def write_spatial(options: TrainOptions, training: Training, tensors: dict[str, Tensor]) -> None:
    """Write what trained of the image model as ComfyUI loads it: a LoRA, or a U-Net for Load Diffusion Model."""
    if not tensors:
        return
    spatial = training.weights["spatial"]
    is_lora = isinstance(spatial, Loras)
    path = options.output / f"{run_name(options)}_{'lora' if is_lora else 'unet'}.safetensors"
    made = exported(spatial, tensors, training.inflation.structure)
    with replacing(path) as beside:
        write_durably(beside, lambda file: write_tensors(file, made, {"format": "pt"}))
    folder, node = ("loras", "Load LoRA") if is_lora else ("diffusion_models", "Load Diffusion Model")
    log.info("Wrote %s; put it into ComfyUI's models/%s, and load it with %s.", path, folder, node)
