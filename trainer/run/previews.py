"""Pictures of what a run has learnt so far: a sampled clip as an animated WebP and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...networks.asked import Asked, Given
from ..base.load import Autoencoder, decode_latents
from ..clips.batches import TrainingClip
from ..clips.cache import training_window
from ..show.pictures import contact_sheet, write_webp
from .export import ema_weights
from .loop import Training
from .sample import Sampling, sample_clip, starting_noise
from .two_passes import asked_for, sample_passes


class KnownClip(NamedTuple):
    """A clip of which something is known: the task's name, C and M, (1, frames, 5, height, width), and the known pixels
    on grey, uint8 (frames, height, width, 3)."""

    name: str
    condition: Tensor
    shown: np.ndarray


@dataclass(frozen=True)
class Preview:
    """The prompt of a preview; always the same noise, so that previews of different steps compare.

    `text`, `no_caption`: the embedded caption, and the embedded empty one, (tokens, width). `first`: latents of the
    first frame, (4, height, width), where training gives it clean; None where it is sampled. `motions`, `appearance`:
    of clips of a still that the image model makes first, HiGen's two passes; none: one clip, of noise alone. `tasks`:
    clips of known pixels, each in a row of a picture of their own.
    """

    caption: str
    text: Tensor
    no_caption: Tensor
    first: Tensor | None = None
    motions: tuple[float, ...] = ()
    appearance: float = 0.0
    tasks: tuple[KnownClip, ...] = ()

    @property
    def label(self) -> str:
        shown = ["still", *(f"motion {motion:.0f}" for motion in self.motions)] if self.motions else []
        return ", ".join([self.caption, *shown])


def first_frame_of(clip: TrainingClip, cells: tuple[int, int]) -> Tensor:
    """Return latents of a clip's first frame, (4, height, width), cropped at its middle to `cells` (width, height)."""
    return training_window(clip.latents[:1], 1, cells, torch.Generator())[0]


def sample_preview(training: Training, preview: Preview, how: Sampling) -> list[Tensor]:
    """Return the latents of the preview's clip, or of its still and the clips of it, with the weights that would be
    exported now."""
    accelerator, plan, objective = training.accelerator, training.plan, training.objective
    noise = starting_noise(plan.seed, plan.frames, plan.cells).to(accelerator.device)
    with ema_weights(training), accelerator.autocast():
        if preview.motions:
            asked = [asked_for(None, motion, preview.appearance, plan.frames) for motion in preview.motions]
            text = preview.text, preview.no_caption
            return sample_passes(objective.predict_picture, objective.predict, *text, noise, how, asked, plan.seed)
        clip = sample_clip(
            training.objective.predict,
            preview.text,
            preview.no_caption,
            noise,
            how,
            first=preview.first,
            progress=accelerator.is_main_process,
        )
    return [clip]


def sample_tasks(training: Training, preview: Preview, how: Sampling) -> list[Tensor]:
    """Return the latents of a clip for each task of known pixels, all of the same noise."""
    accelerator, plan = training.accelerator, training.plan
    noise = starting_noise(plan.seed, plan.frames, plan.cells).to(accelerator.device)
    with ema_weights(training), accelerator.autocast():
        models = [
            partial(training.objective.predict, asked=Asked(condition=Given(task.condition.to(noise))))
            for task in preview.tasks
        ]
        text = preview.text, preview.no_caption
        return [sample_clip(model, *text, noise, how, progress=accelerator.is_main_process) for model in models]


def below_each_other(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return frames of several clips of one length, one below the other."""
    return np.concatenate(clips, axis=1)


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return frames of several clips beside each other; a still stands for as long as the longest."""
    frames = max(map(len, clips))
    return np.concatenate([np.repeat(clip, frames // len(clip), axis=0) for clip in clips], axis=2)


@torch.no_grad()
def decode_clip(vae: Autoencoder, latents: Tensor) -> np.ndarray:
    """Return frames uint8 (frames, height, width, 3); the autoencoder visits the latents' device and goes back to the
    CPU."""
    vae.to(latents.device)
    frames = torch.cat([decode_latents(vae, z[None].to(vae.dtype)).float() for z in latents])
    vae.cpu()
    return ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_preview(folder: Path, name: str, label: str, frames: np.ndarray, fps: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_webp(frames, folder / f"{name}.webp", fps)
    contact_sheet([(label, frames)], folder / f"{name}.png")
