"""What a MODEL's motion files are asked for, as settings of its clone, and in every forward as tensors for its rows.

What belongs to a condition travels with it, as the host's own conditions do: so it is cut where an area is, repeated
over the batch, and found again in whatever order conditions are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

from ..networks.asked import NOTHING, Asked, Given
from ..networks.clip import Clip

if TYPE_CHECKING:
    from ..samplers.guidance import Asking  # for types alone: it would slow down ComfyUI's start

GUIDANCE = "Motion/Appearance Guidance"
"""Name of the node, for errors."""

STILL, CONDITIONAL = "stillmotion_still_", "stillmotion_conditional"
"""Names of what travels with conditions: a motion file's still, with its number, and 1, or 0 where unconditional."""


@dataclass(frozen=True, eq=False)
class Still:
    """A spatial prior: scaled latents, (1, 4, height, width), and what to do where the clip has another size."""

    latent: Tensor
    strength: float = 1.0
    resize: bool = False

    def fitted(self, height: int, width: int) -> Tensor:
        """Return the latents of this size, cut to its aspect ratio.

        Raises:
            ValueError: they have another, and may not be resized.
        """
        own = tuple(self.latent.shape[-2:])
        if own == (height, width):
            return self.latent
        if not self.resize:
            raise ValueError(
                f"The still of Spatial Prior has {8 * own[1]} x {8 * own[0]} pixels and the clip {8 * width} x"
                f" {8 * height}: make both the same size, or set size to 'resize the still'."
            )
        method = "area" if own[0] > height else "bilinear"
        return comfy.utils.common_upscale(self.latent, width, height, method, "center")


@dataclass(frozen=True, eq=False)
class Known:
    """Known pixels of the whole clips of a LATENT: C, scaled, and M, (clips or 1, frames, 5, height, width).

    They do not travel with conditions: each forward takes the frames that its rows are, of all clips in their order.
    """

    value: Tensor
    strength: float = 1.0

    def for_rows(self, clips: int) -> Given:
        """Return them for so many clips: those of a LATENT, once for each condition that is run.

        Raises:
            ValueError: the LATENT has another number of clips.
        """
        own = len(self.value)
        if clips % own:
            raise ValueError(f"Pixels are known of {own} clips, and the latent has {clips}; give one for all, or each.")
        value = self.value if own == 1 else self.value.repeat(clips // own, 1, 1, 1, 1)
        return Given(value, None if self.strength == 1 else torch.full((len(value),), float(self.strength)))


@dataclass(frozen=True, eq=False)
class Asks:
    """What one motion file is asked for; None: nothing.

    `first`: scaled latents of the first frame, (clips or 1, 4, height, width), that the network is to see clean.
    `motion_cfg`, `look_cfg`: the unconditional branch is asked for no motion, or for no change of look.
    """

    still: Still | None = None
    known: Known | None = None
    first: Tensor | None = None
    motion: Asking | None = None
    look: Asking | None = None
    motion_cfg: bool = False
    look_cfg: bool = False


NO_ASKS = Asks()


def put_into_conditions(conds: dict[str, list[dict]], asks: Sequence[Asks], size: Sequence[int], device) -> dict:
    """Return a guider's conditions with what travels with them; they themselves stay as they are.

    Args:
        conds: by their name: the unconditional ones are those that are called negative.
        size: height and width of the clip's latents.

    Raises:
        ValueError: a still has another size and may not be resized.
    """
    stills = {f"{STILL}{i}": a.still.fitted(*size).to(device) for i, a in enumerate(asks) if a.still}
    added = {name: comfy.conds.CONDNoiseShape(latent) for name, latent in stills.items()}
    marked = any(a.motion_cfg or a.look_cfg for a in asks)
    if not added and not marked:
        return conds
    out = {}
    for name, group in conds.items():
        mark = torch.tensor([[float("negative" not in name)]], device=device)
        own = {**added, CONDITIONAL: comfy.conds.CONDRegular(mark)} if marked else added
        out[name] = [{**cond, "model_conds": {**cond.get("model_conds", {}), **own}} for cond in group]
    return out


Carried = tuple[dict[int, Tensor], Tensor | None]
"""What came with the conditions of one forward: stills by their motion file's number, and of each clip 1, or 0 where it
is unconditional, None where no file wants to know."""


def take_carried(options: dict, frames: int) -> Carried:
    """Remove what came with conditions from the options of a forward, whose rows are clips of so many frames."""
    names = [name for name in options if name.startswith(STILL)]
    stills = {int(name.removeprefix(STILL)): options.pop(name)[::frames] for name in names}
    mark = options.pop(CONDITIONAL, None)
    return stills, None if mark is None else mark[::frames, 0]


def asked_of(asks: Asks, number: int, carried: Carried, whole: int, clips: int, size: Sequence[int]) -> Asked:
    """Return what a motion file is asked for in one forward.

    Args:
        number: of the motion file among those of the model.
        whole: frames of a whole clip.
        clips: in this forward, of all conditions together.
        size: height and width of the latents.
    """
    if asks is NO_ASKS:
        return NOTHING
    prior = motion = look = None
    stills, conditional = carried
    if asks.still:
        latent = stills.get(number)
        latent = asks.still.fitted(*size) if latent is None else latent
        prior = Given(latent, None if asks.still.strength == 1 else torch.tensor([asks.still.strength]))
    if asks.motion and whole > 1:
        motion = Given(asks.motion.for_frames(whole)[None], conditional if asks.motion_cfg else None)
    if asks.look and whole > 1:
        look = Given(asks.look.for_frames(whole)[None], conditional if asks.look_cfg else None)
    condition = asks.known.for_rows(clips) if asks.known else None
    return Asked(prior, motion, look, condition, whole)


def with_first_frames(x: Tensor, asks: Sequence[Asks], clip: Clip) -> Tensor:
    """Return the network's input with the first frame of each clip clean, where one is given and these rows have it.

    Raises:
        ValueError: it has another size than the clip, or there is another number of clips.
    """
    first = next((a.first for a in asks if a.first is not None), None)
    if first is None or 0 not in clip.indices:
        return x
    rows = x.unflatten(0, (-1, clip.frames)).clone()
    if first.shape[-2:] != x.shape[-2:] or len(rows) % len(first):
        raise ValueError(
            f"There are {len(first)} first frames of {8 * first.shape[-1]} x {8 * first.shape[-2]} pixels for"
            f" {len(rows)} clips of {8 * x.shape[-1]} x {8 * x.shape[-2]}; give one for all or each, of their size."
        )
    rows[:, clip.indices.index(0), :4] = first.to(x).repeat(len(rows) // len(first), 1, 1, 1)
    return rows.flatten(0, 1)


def whole_frames(clip: Clip, noted: int) -> int:
    """Return how many frames the whole clip has of which these are, where a run has noted so many."""
    return max(noted, max(clip.indices) + 1)


PARTS = {"still": "prior", "known": "condition", "motion": "motion", "look": "appearance"}
"""The part of a motion file that takes what is asked."""

COMMANDS = {"condition": "condition"}
"""The trainer's command that makes files with a part, where it is not `decouple`."""


def asking(model, key: str, node: str, remedy: str = "", **changes):
    """Return a clone of MODEL whose motion files are asked for `changes` of `Asks`, each file for what it can take.

    Args:
        key: of the model's settings.
        node, remedy: for errors: who asks, and what else can be done.

    Raises:
        ValueError: no motion file of MODEL takes one of them.
    """
    settings = model.get_attachment(key) or ()
    for name in changes.keys() & PARTS.keys():
        check_part(settings, PARTS[name], node, remedy)
    model = model.clone()
    model.set_attachments(key, tuple(replace(s, asks=changed(s, changes)) for s in settings))
    return model


def changed(settings, changes: dict) -> Asks:
    """Return what a motion file is asked for with those of the changes that it has a part for."""
    config = settings.motion.info.config
    known = {name: value for name, value in changes.items() if getattr(config, PARTS[name.replace("_cfg", "")])}
    return replace(settings.asks, **known) if known else settings.asks


def check_part(settings: Sequence, part: str, node: str, remedy: str) -> None:
    """Raise ValueError where no motion file has a part, naming what each has."""
    if not settings:
        raise ValueError(f"This model has no motion file: put the STUNet Loader before {node}.")
    if not any(getattr(s.motion.info.config, part) for s in settings):
        has = "; ".join(f"{s.motion.path.name} has {', '.join(s.motion.info.config.to_json())}" for s in settings)
        raise ValueError(
            f"{node} needs a motion file with the part '{part}', and {has}: load one that `python -m trainer"
            f" {COMMANDS.get(part, 'decouple')}` made{remedy}."
        )
