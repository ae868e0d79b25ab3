"""Pictures of what a run has learnt so far: a sampled clip as an animated WebP and as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.load import Autoencoder, decode_latents
from ..clips.batches import TrainingClip
from ..clips.cache import training_window
from ..show.pictures import contact_sheet, write_webp
from .export import ema_weights
from .loop import Training
from .sample import Sampling, sample_clip, starting_noise
from .two_passes import asked_for, sample_passes


@dataclass(frozen=True)
class Preview:
    """The prompt of a preview; always the same noise, so that previews of different steps compare.

    `text`, `no_caption`: the embedded caption, and the embedded empty one, (tokens, width). `first`: latents of the
    first frame, (4, height, width), where training gives it clean; None where it is sampled. `motions`, `appearance`:
    of clips of a still that the image model makes first, HiGen's two passes; none: one clip, of noise alone.
    """

    caption: str
    text: Tensor
    no_caption: Tensor
    first: Tensor | None = None
    motions: tuple[float, ...] = ()
    appearance: float = 0.0

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
