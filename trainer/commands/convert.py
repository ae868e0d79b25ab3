"""`convert`: motion modules of AnimateDiff and diffusers to motion files, and back."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ...networks.atomic import write_bytes
from ...networks.formats import animatediff, motion_adapter
from ...networks.formats.files import ADAPTER_CONFIG, ADAPTER_TENSORS
from ...networks.formats.modules import Format
from ...networks.formats.motion_lora import merged
from ...networks.motion_file import MotionInfo, check_finite
from ..base.motion_module import described, read_motion_module, read_pickled
from ..options import ConvertOptions
from ..run.checkpoints import same
from ..run.export import library_versions, write_and_open

log = logging.getLogger("stillmotion")


def convert(options: ConvertOptions) -> None:
    """Read, merge and write; every file is read back before it is called done."""
    info, tensors = read_motion_module(options.input)
    log.info("%s: %s", options.input, described(info))
    if said := animatediff.remark(info):
        log.warning("It makes clips that are like AnimateDiff's, not the same: %s.", said)
    for path in options.lora:
        tensors = with_lora(path, info, tensors, options.lora_strength)
    if options.to == "stillmotion":
        made_by = {**options.model_dump(mode="json"), "made_from": info.options}
        write_and_open(options.output, tensors, replace(info, options=made_by, versions=library_versions()))
    else:
        export(options, info, tensors)
    log.info("%s is written", options.output)


def with_lora(path: Path, info: MotionInfo, tensors: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    lora = read_pickled(path)
    check_finite(path, lora)
    try:
        return merged(info, tensors, lora, strength)
    except ValueError as error:
        raise ValueError(f"{path} cannot be merged: {error}") from error


def export(options: ConvertOptions, info: MotionInfo, tensors: Mapping[str, Tensor]) -> None:
    """Write the form of another program, read it back, and say where that program will do something else."""
    try:
        if options.to == "animatediff":
            form = animatediff.FORMAT
            write_tensors(options.output, animatediff.to_animatediff(info, tensors))
        else:
            form = motion_adapter.FORMAT
            write_adapter(options.output, *motion_adapter.to_motion_adapter(info, tensors))
    except ValueError as error:
        raise ValueError(f"{options.input} cannot be written for {options.to}: {error}") from error
    found, read = read_motion_module(options.output)
    assert same(read, dict(tensors)), f"{options.output} reads back differently"
    warn_of_differences(info, found, form)


def warn_of_differences(info: MotionInfo, found: MotionInfo, form: Format) -> None:
    """Warn of what the format cannot say and its programs assume."""
    if info.config.temporal.norm_scope != form.norm_scope:
        log.warning(
            "Its blocks normalise over each %s, those of %s over each %s: pictures will be like those of this file,"
            " not the same.",
            *(info.config.temporal.norm_scope, form.name, form.norm_scope),
        )
    if info.schedule != found.schedule:
        log.warning(
            "It was trained on the %s schedule, which the file does not say; set it in the program that reads it,"
            " or that takes the one of AnimateDiff (%s).",
            *(info.schedule, found.schedule),
        )


def write_adapter(folder: Path, config: dict, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(folder / ADAPTER_TENSORS, tensors)
    write_bytes(folder / ADAPTER_CONFIG, json.dumps(config, indent=2).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_bytes(path, save(dict(tensors), {"format": "pt"}))
