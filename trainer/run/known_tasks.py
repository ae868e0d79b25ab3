"""Known pixels in a run: the tasks of its clips, a preview of each, and what else their parts are asked."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ...networks.config import InflationConfig
from ...samplers.conditions import GREY
from ..base.features import LATENT
from ..base.load import Autoencoder
from ..clips.batches import TrainingClip, generator_for
from ..clips.cache import training_window
from ..clips.known import KnownTasks, Pixels, Told, told
from ..losses.decoupling import Decoupling, measured
from .previews import KnownClip
from .session import Session
from .training_set import TrainingSet, with_known


def with_tasks(session: Session, clips: TrainingSet, shares: dict[str, float], vae: Autoencoder) -> TrainingSet:
    """Return a set each of whose clips is seen in a task, with a preview of each that has a share."""
    pixels = Pixels(vae, session.accelerator.device)
    shown = [name for name, share in shares.items() if share and name != "text_to_video"]
    tasks = [preview_of(name, clips.measured[0], session, pixels) for name in shown]
    pixels.offload()
    clips = replace(clips, preview=replace(clips.preview, tasks=tuple(tasks)))
    return with_known(clips, KnownTasks(shares, pixels))


def preview_of(task: str, clip: TrainingClip, session: Session, pixels: Pixels) -> KnownClip:
    """Return what is known of a clip in a task, the same in every run of a seed."""
    latents = training_window(clip.latents, session.options.frames, session.cells, torch.Generator())
    one = told(task, latents.float(), generator_for(session.options.seed, "known preview", task), pixels)
    return KnownClip(task.replace("_", " "), one.condition[None], pictured(one, pixels))


def pictured(one: Told, pixels: Pixels) -> np.ndarray:
    """Return the known pixels of a clip on grey, uint8 (frames, height, width, 3)."""
    if one.given is None:
        frames, known = pixels.decode(one.latents), one.condition[:, 4].repeat_interleave(8, 1).repeat_interleave(8, 2)
    else:
        frames, known = one.given.frames, one.given.known
    return (torch.where(known[..., None] > 0, frames, GREY).clamp(0, 1) * 255).round().byte().numpy()


def decoupling_for(config: InflationConfig) -> Decoupling | None:
    """Return how the prior and the guidance of a motion file go on training, None where it has none.

    Raises:
        ValueError: the appearance factor was measured on what a model for images sees.
    """
    if not (config.prior or config.motion or config.appearance):
        return None
    if config.appearance and config.appearance.features != str(LATENT):
        raise ValueError(
            f"--init has an appearance factor measured on {config.appearance.features}: go on with `python -m trainer"
            f" decouple --condition --features …`, which reads that model"
        )
    norm = config.motion.norm.partition("_")[0] if config.motion else "l1"
    return Decoupling(measure=partial(measured, norm=norm))
