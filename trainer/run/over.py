"""`--over`: a run that learns on top of a motion model, from its options to the base that it trains on."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...networks.config import TemporalLora
from ...networks.shown import shown
from ..base.auto import hub_folder
from ..base.comfyui import find_comfyuis
from ..base.ground import Ground, check_ground, read_ground
from ..base.ground_places import ground_places, grounds_for, named_ground
from ..base.host import structure_of
from ..base.load import Base
from ..base.motion_module import described
from ..options import FewShotOptions
from ..show.progress import working

log = logging.getLogger("stillmotion")

RANK = 16
"""Of LoRAs on the attentions over frames, where `--over` has such and nobody set it."""


def ground_of(options: FewShotOptions) -> Ground | None:
    """Read what `--over` names, None where it is not given.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it can be no ground.
    """
    if options.over is None:
        return None
    with working("reading the motion model"):
        ground = read_ground(named_ground(options.over, ground_places(find_comfyuis(), hub_folder())))
    log.info("On top of %s: %s, which stays as it is.", ground.path, described(ground.info))
    return ground


def with_ground(base: Base, ground: Ground | None) -> Base:
    """Return the base with a ground on it, and with its noise schedule; without one, say which one there is.

    Raises:
        ValueError: it was made for another U-Net, or one that predicts something else.
    """
    structure = structure_of(base.unet)
    if ground is None:
        found = list(grounds_for(structure, ground_places(find_comfyuis(), hub_folder())))
        if found:
            name, more = shown(found[0].name, 60), f", as {len(found) - 1} more" if found[1:] else ""
            log.info(
                "%s lies on this machine%s: with --over %s the motion is learnt on top of it, from frames that cohere"
                " already, as a LoRA on its attentions and what else trains.",
                *(name, more, name if found[0].listed else found[0].path),
            )
        return base
    check_ground(ground, structure, base.prediction)
    return replace(base, ground=ground, schedule=ground.info.schedule, zero_snr=ground.info.zero_snr)


def with_defaults(options: FewShotOptions, ground: Ground | None) -> FewShotOptions:
    """Return the options with the defaults that depend on what a ground has.

    Raises:
        ValueError: LoRAs are asked for on attentions that it has not, or nothing would train.
    """
    if ground is None:
        return options
    given, has, changed = options.model_fields_set, ground.info.config, {"over": ground.path}
    has_attentions = TemporalLora.on(has, RANK) is not None
    if "temporal_lora" not in given and has_attentions:
        changed["temporal_lora"] = RANK
        log.info("--temporal-lora is %d, on the attentions over frames of %s.", RANK, ground.path.name)
    if options.temporal_lora and not has_attentions:
        raise ValueError(
            f"--temporal-lora changes attentions over frames, of which {ground.path} has none: leave it out"
        )
    if "frame_attention" not in given and has.temporal:
        changed["frame_attention"] = False
        log.info("--frame-attention is off: the temporal blocks of %s connect the frames already.", ground.path.name)
    options = options.model_copy(update=changed)
    if options.queries == options.recurrence == "none" and not (
        options.temporal_lora or options.frame_attention or options.temporal_blocks
    ):
        raise ValueError("nothing would train: leave one of --temporal-lora, --queries, --recurrence on")
    return options
