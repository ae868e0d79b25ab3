"""Clips sampled with and without a motion file from the same noise: how much they move, to look at and as numbers."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...networks.inflation import Inflation
from ...networks.motion_file import MotionInfo, read_motion_file, read_motion_info
from ...samplers.factors import mean_frame_difference, x_t_slice
from ..base.ground import Ground, check_whole
from ..base.host import InflatedUNet, structure_of
from ..base.load import Base, encode_captions
from ..show.pictures import motion_amount
from .previews import decode_clip
from .sample import Sampling, sample_clip, starting_noise

log = logging.getLogger("stillmotion")


@dataclass(frozen=True)
class Sample:
    """One clip: what it is called, its scaled latents (frames, 4, h, w) and its frames uint8 (frames, h, w, 3)."""

    name: str
    latents: Tensor
    frames: np.ndarray

    @property
    def x_t_slice(self) -> np.ndarray:
        return x_t_slice(torch.from_numpy(self.frames)).numpy()

    def __str__(self) -> str:
        """Return frame difference in latents, and motion as mean optical flow: a clip that stands still has zeros."""
        difference, flow = mean_frame_difference(self.latents), motion_amount(self.frames).flow
        return f"{self.name}: latent frame difference {difference:.3f}, optical flow {flow:.2f} % of the longer side"


def load_motion(base: Base, motion: Path | None) -> InflatedUNet:
    """Return a copy of the base's U-Net, and of the ground on it, with a motion file on them, or without one.

    Raises:
        ValueError: the file cannot be used with this base, or was learnt on top of a motion model that is not there.
    """
    unet = copy.deepcopy(base.unet)
    ground = copy.deepcopy(base.ground.inflation).to(unet.device) if base.ground else None
    if motion is None:
        return InflatedUNet(unet, ground=ground)
    info, tensors = read_motion_file(motion, fits=structure_of(unet))
    check_below(motion, info, base.ground)
    inflation = Inflation(info.config, info.structure)
    inflation.load_state_dict(tensors)
    return InflatedUNet(unet, inflation.to(unet.device), ground=ground).requires_grad_(False)


def check_below(motion: Path, info: MotionInfo, ground: Ground | None) -> None:
    """Raise ValueError where what a motion was learnt on top of is not there; warn where it is something else."""
    if ground is None:
        check_whole(motion, info, "name that file with --over")
    elif info.over is None or info.over.sha256 != ground.over.sha256:
        below = f"on top of {info.over.name}" if info.over else "without another motion model"
        log.warning("%s was learnt %s, and is put on %s.", motion, below, ground.path)


@torch.no_grad()
def sample_with(
    base: Base,
    motion: Path | None,
    name: str,
    caption: str,
    *,
    frames: int,
    size: tuple[int, int],
    seed: int = 0,
    guidance: float = 7.5,
) -> Sample:
    """Sample one clip of `size` (width, height) in pixels; the same seed is the same noise with every motion file."""
    device = base.unet.device
    text, no_caption = encode_captions(base, [caption, ""]).to(device)
    noise = starting_noise(seed, frames, (size[0] // 8, size[1] // 8)).to(device)
    schedule = "scaled_linear" if motion is None else read_motion_info(motion).schedule
    how = Sampling(guidance=guidance, schedule=schedule)
    latents = sample_clip(load_motion(base, motion), text, no_caption, noise, how)
    return Sample(name, latents, decode_clip(base.vae, latents))
