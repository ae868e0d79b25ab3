"""LoRAs on the motion files of a MODEL, AnimateDiff's and our own: the host merges them, as it merges LoRAs into a
U-Net."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import comfy.lora
from torch import Tensor

from ..networks import temporal_lora
from ..networks.formats.files import read_motion_lora
from ..networks.formats.motion_lora import changes
from ..networks.lora import Change
from .motion import LoadedMotion
from .settings import KEY, Settings

log = logging.getLogger("stillmotion")

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


def add_temporal_lora(model, motion: LoadedMotion, strength: float) -> None:
    """Merge the LoRAs of a motion file into the motion files of MODEL: into the one that they were learnt on, else into
    all that have the attentions; and warn where what it was learnt on top of is not there."""
    over, settings = motion.info.over, model.get_attachment(KEY) or ()
    if not over and not motion.loras:
        return
    added = [_fitting_changes(s.motion, motion.loras) for s in settings]
    own = [n for n, s in enumerate(settings) if over and s.motion.sha256 == over.sha256]
    chosen = own or [n for n, found in enumerate(added) if found]
    _warn_of_ground(motion, settings, own, any(added[n] for n in chosen))
    if any(added):
        patchers = [patcher.clone() for patcher in model.get_additional_models_with_key(KEY)]
        for n in chosen:
            patchers[n].add_patches(as_patches(added[n]), strength)
        model.set_additional_models(KEY, patchers)


def _fitting_changes(ground: LoadedMotion, loras: dict[str, Tensor]) -> list[Change]:
    """Return those changes of which another motion file has the parameters, in the same shape."""
    tensors = ground.patcher.model.state_dict() if ground.patcher else {}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def fits(change: Change) -> bool:
        rows, columns = shapes.get(change.parameter, (0, 0))
        return rows >= change.start + change.rows and columns == change.down.shape[1]

    return [change for change in temporal_lora.changes(loras) if fits(change)]


def _warn_of_ground(motion: LoadedMotion, settings: Sequence[Settings], own: list[int], acts: bool) -> None:
    name = motion.info.over.name if motion.info.over else "a motion module"
    if motion.loras and not acts:
        log.warning(
            "%s was learnt on top of %s, and this model has no temporal blocks that its LoRA fits, so that it changes"
            " nothing: load %s in a STUNet Loader before it.",
            *(motion.path.name, name, name),
        )
    elif motion.info.over and not own:
        log.warning(
            "%s was learnt on top of %s; the motion of this model is another one (%s), and the clip will be another.",
            *(motion.path.name, name, ", ".join(s.motion.path.name for s in settings) or "none"),
        )


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
