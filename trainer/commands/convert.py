"""`convert`: motion modules and LoRAs of AnimateDiff and diffusers and HiGen's release to motion files, and back."""

from __future__ import annotations

import glob
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from ...networks import tensor_file
from ...networks.atomic import remove_unfinished, replacing, write_bytes, write_durably
from ...networks.formats import animatediff, motion_adapter
from ...networks.formats.files import ADAPTER_CONFIG, ADAPTER_TENSORS, explained, kind_of, naming
from ...networks.formats.higen import is_higen
from ...networks.formats.modules import Format, module_tensors
from ...networks.formats.motion_lora import from_motion_lora, is_motion_lora, merged, to_motion_lora
from ...networks.motion_file import MotionInfo, check_finite, check_numbers, opened
from ..base.ldm_checkpoint import shapes_of
from ..base.motion_module import described, read_motion_module, read_pickled
from ..base.released import Release, read_parts, release_of, whole_checkpoint
from ..base.tensors import is_pickled_file, read_tensors
from ..config import recorded, refuse_existing
from ..options import ConvertOptions
from ..run.checkpoints import same
from ..run.export import check_written, library_versions, write_result
from ..run.merge import Weighted, at_rank, merged_motions

log = logging.getLogger("stillmotion")


def convert(options: ConvertOptions) -> None:
    """Read, merge and write; every file is read back before it is called done."""
    refuse_existing(options.overwrite, *files_written(options))
    if options.to == "higen":
        write_pickled(options.output, read_parts(options.input, options.model))
        log.info("%s is written", options.output)
        return
    if lora := ready_motion_lora(options):
        write_tensors(options.output, lora)
        log.info("%s is written", options.output)
        return
    info, tensors, release = read(options.input)
    log.info("%s: %s", options.input, described(info))
    if said := animatediff.remark(info):
        log.warning("It makes clips that are like AnimateDiff's, not the same: %s.", said)
    for path in options.lora:
        tensors = with_lora(path, info, tensors, options.lora_strength)
    info, tensors = with_loras_joined(options, info, tensors)
    image_model = image_model_of(options, release)
    if image_model:
        refuse_existing(options.overwrite, image_model_path(options))
    if options.to == "stillmotion":
        made_by = {**recorded(options), "made_from": info.options}
        write_result(options.output, tensors, replace(info, options=made_by, versions=library_versions()))
    else:
        export(options, info, tensors)
    log.info("%s is written", options.output)
    if image_model:
        write_image_model(options, image_model)


def read(path: Path) -> tuple[MotionInfo, Mapping[str, Tensor], Release | None]:
    """Return what a file holds as a motion file does, and all of it where it is HiGen's release."""
    if path.is_dir() or not (is_pickled_file(path) or is_another_kind(path)):
        return *read_motion_module(path), None
    tensors = read_pickled(path)
    if is_motion_lora(module_tensors(tensors)):
        return *lora_in(path, tensors), None
    if not is_higen(tensors):
        return *explained(path, tensors), None
    release = release_of(path, tensors)
    return release.info, release.motion, release


def is_another_kind(path: Path) -> bool:
    """Tell whether a safetensors file is HiGen's release or a motion LoRA of AnimateDiff."""
    with opened(path) as (_, header):
        return is_higen(header.tensors) or is_motion_lora(module_tensors({name: name for name in header.tensors}))


def ready_motion_lora(options: ConvertOptions) -> dict[str, Tensor] | None:
    """Return a motion LoRA of AnimateDiff that is written as it is, None where the input has to become one."""
    if options.to != "motion-lora" or options.merge or options.rank or options.input.is_dir():
        return None
    tensors = read_pickled(options.input)
    if not is_motion_lora(module_tensors(tensors)):
        return None
    check_numbers(options.input, {name: kind_of(tensor) for name, tensor in tensors.items()})
    return tensors


def lora_in(path: Path, tensors: Mapping[str, Tensor]) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return a motion LoRA as a motion file, after a check of its numbers."""
    check_numbers(path, {name: kind_of(tensor) for name, tensor in tensors.items()})
    check_finite(path, tensors)
    with naming(path):
        return from_motion_lora(tensors)


def with_loras_joined(
    options: ConvertOptions, info: MotionInfo, tensors: Mapping[str, Tensor]
) -> tuple[MotionInfo, Mapping[str, Tensor]]:
    """Add the LoRAs of the files to merge to a motion's own, and cut them to the rank that is asked for."""
    others = [(Path(name), weight) for name, weight in map(weighted, options.merge)]
    if others:
        files = [Weighted(path, *read(path)[:2], weight) for path, weight in others]
        info, tensors = merged_motions([Weighted(options.input, info, tensors, 1.0), *files])
    if options.rank:
        with naming(options.input):
            info, tensors = at_rank(info, tensors, options.rank)
    return info, tensors


def weighted(words: str) -> tuple[str, float]:
    """Split FILE:WEIGHT; the weight of a file alone is 1."""
    name, _, weight = words.rpartition(":")
    try:
        return (name, float(weight)) if name and isfinite(float(weight)) else (words, 1.0)
    except ValueError:
        return words, 1.0


def files_written(options: ConvertOptions) -> list[Path]:
    """Return what is written whatever the input is."""
    if options.to == "motion-adapter":
        return [options.output / ADAPTER_TENSORS, options.output / ADAPTER_CONFIG]
    return [options.output]


def image_model_path(options: ConvertOptions) -> Path:
    kind = "checkpoint" if options.with_ else "unet"
    return options.model or options.output.with_name(f"{options.output.stem}_{kind}.safetensors")


def image_model_of(options: ConvertOptions, release: Release | None) -> Mapping[str, Tensor] | None:
    """Return the image model that is to be written, None where the input holds none."""
    if release is None:
        if options.model or options.with_:
            raise ValueError(f"--model and --with are for HiGen's release, and {options.input} is none; leave them out")
        return None
    return whole_checkpoint(release, options.with_) if options.with_ else release.unet


def write_image_model(options: ConvertOptions, tensors: Mapping[str, Tensor]) -> None:
    path = image_model_path(options)
    write_tensors(path, tensors)
    node, folder = ("Load Checkpoint", "checkpoints") if options.with_ else ("Load Diffusion Model", "diffusion_models")
    log.info("%s is written, the image model: %s of ComfyUI reads it from models/%s", path, node, folder)


def with_lora(path: Path, info: MotionInfo, tensors: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    lora = read_pickled(path)
    check_numbers(path, {name: kind_of(tensor) for name, tensor in lora.items()})
    check_finite(path, lora)
    try:
        return merged(info, tensors, lora, strength)
    except ValueError as error:
        raise ValueError(f"{path} cannot be merged: {error}") from error


def export(options: ConvertOptions, info: MotionInfo, tensors: Mapping[str, Tensor]) -> None:
    """Write the form of another program, read it back, and say where that program will do something else."""
    try:
        if options.to == "motion-lora":
            return export_lora(options.output, info, tensors)
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


def export_lora(path: Path, info: MotionInfo, tensors: Mapping[str, Tensor]) -> None:
    made = to_motion_lora(info, tensors)
    write_tensors(path, made)
    found = from_motion_lora(made)[1]
    assert same(found, {name: tensors[name] for name in found}), f"{path} reads back differently"
    if others := [part for part in info.config.to_json() if part != "temporal_lora"]:
        log.warning("Left out, since a motion LoRA has no place for them: %s.", ", ".join(others))


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
    check_finite(path, tensors)  # before anything takes the place of an older file
    remove_unfinished(path.parent, glob.escape(path.name))
    with replacing(path) as beside:
        write_durably(beside, lambda file: tensor_file.write_tensors(file, tensors, {"format": "pt"}))
        check_written(beside, tensors)


def write_pickled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict as torch does, and read it back by its checksums: with its tensors it would need the memory
    twice."""
    check_finite(path, tensors)
    remove_unfinished(path.parent, glob.escape(path.name))
    with replacing(path) as beside:
        write_durably(beside, lambda file: torch.save(dict(tensors), file))
        with zipfile.ZipFile(beside) as archive:
            assert archive.testzip() is None, f"{path} reads back differently"
        assert shapes_of(read_tensors(beside)) == shapes_of(tensors), f"{path} reads back differently"
