"""`--over`: a run that learns on top of a motion model, from its options to the base that it trains on."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...networks.config import TemporalLora
from ...networks.formats import animatediff
from ...networks.shown import shown
from ..base.auto import hub_folder, listed_name
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
        path = named_ground(options.over, ground_places(find_comfyuis(), hub_folder()))
        ground = read_ground(path, listed_name(path, []))
    log.info("On top of %s: %s, which stays as it is.", ground.path, described(ground.info))
    if said := animatediff.remark(ground.info):
        log.warning("%s makes clips that are like AnimateDiff's, not the same: %s.", ground.path.name, said)
    return ground


def with_ground(base: Base, ground: Ground) -> Base:
    """Return the base with a ground on it, and with its noise schedule.

    Raises:
        ValueError: it was made for another U-Net, or one that predicts something else.
    """
    check_ground(ground, structure_of(base.unet), base.prediction)
    return replace(base, ground=ground, schedule=ground.info.schedule, zero_snr=ground.info.zero_snr)


def tell_of_grounds(base: Base) -> None:
    """Say which motion model there is for a base, and what `--over` would do with it."""
    places = ground_places(find_comfyuis(), hub_folder())
    if found := next(grounds_for(structure_of(base.unet), places), None):
        log.info(
            "%s lies on this machine: with --over %s the motion is learnt on top of it, whose frames hold together"
            " from the first step.",
            *(shown(found.name, 60), shown(found.name, 60) if found.listed else found.path),
        )


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
    if "frame_attention" not in given and (has.temporal or has.frame_attention):
        changed["frame_attention"] = False
        log.info("--frame-attention is off: %s connects the frames already.", ground.path.name)
    options = options.model_copy(update=changed)
    if options.queries == options.recurrence == "none" and not (
        options.temporal_lora or options.frame_attention or options.temporal_blocks
    ):
        raise ValueError("nothing would train: leave one of --temporal-lora, --queries, --recurrence on")
    return options
