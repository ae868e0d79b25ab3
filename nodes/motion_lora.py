"""Motion LoRAs of AnimateDiff on the motion files of a MODEL: the host merges them, as it merges LoRAs into a U-Net."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import comfy.lora
from torch import Tensor

from ..networks.formats.files import read_motion_lora
from ..networks.formats.motion_lora import Change, changes
from .settings import KEY, Settings

NODE = "Motion LoRA"


def with_motion_lora(model, path: Path, strength: float):
    """Return a clone of MODEL with a motion LoRA merged into the motion files that it fits; may be repeated.

    Raises:
        FileNotFoundError, MotionFileError: there is no such LoRA, or it is damaged.
        ValueError: it fits no motion file of MODEL.
    """
    lora = read_motion_lora(path)
    settings = model.get_attachment(KEY) or ()
    found = fitting(settings, lora, path.name)
    model = model.clone()
    patchers = [patcher.clone() for patcher in model.get_additional_models_with_key(KEY)]
    for number, added in found.items():
        patchers[number].add_patches(as_patches(added), strength)
    model.set_additional_models(KEY, patchers)
    return model


def fitting(settings: Sequence[Settings], lora: dict[str, Tensor], name: str) -> dict[int, list[Change]]:
    """Return what a motion LoRA changes in each motion file that it fits, by its place among them.

    Raises:
        ValueError: it fits none, with the reason of each.
    """
    if not settings:
        raise ValueError(f"This model has no motion file: put the STUNet Loader before {NODE}.")
    found, reasons = {}, []
    for number, s in enumerate(settings):
        try:
            found[number] = list(changes(s.motion.info, lora))
        except ValueError as error:
            reasons.append(f"{s.motion.path.name}, for {error}")
    if not found:
        raise ValueError(
            f"{name} does not fit {'; '.join(reasons)}. AnimateDiff's motion LoRAs are for its version 2, others for"
            " the module that they were trained on: load that in the STUNet Loader."
        )
    return found


def as_patches(added: Iterable[Change]) -> dict:
    """Return changes as patches of the host, each of some rows of a parameter."""
    lora, places = {}, {}
    for number, change in enumerate(added):
        lora |= {f"{number}.lora_down.weight": change.down, f"{number}.lora_up.weight": change.up}
        places[str(number)] = change.parameter, (0, change.start, change.rows)
    return comfy.lora.load_lora(lora, places)


def check_loaded_once(model) -> None:
    """Raise ValueError where one motion file is on MODEL twice and a motion LoRA is merged into it: both are one."""
    modules: dict[int, list] = {}
    for s, patcher in zip(model.get_attachment(KEY), model.get_additional_models_with_key(KEY)):
        modules.setdefault(id(patcher.model), []).append((s, patcher))
    for loaded in modules.values():
        if len(loaded) > 1 and any(patcher.patches for _, patcher in loaded):
            raise ValueError(
                f"{loaded[0][0].motion.path.name} is on this model {len(loaded)} times, and a motion LoRA is merged"
                " into it: load it once, or take copies of the file."
            )
