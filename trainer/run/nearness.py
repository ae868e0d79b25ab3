"""How near previews are to the clips of a run, in how they move and in how they look; and which save that speaks for.

Motion near and looks not is what a motion is learnt for; where the motion comes no nearer any more, looks still do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...samplers.factors import latent_features
from ...samplers.likeness import likeness, motion_profile
from ..base.load import Autoencoder
from ..clips.batches import Plan, TrainingClip
from ..clips.cache import training_window
from .previews import decode_clip

MOTION, LOOKS = "preview_motion_nearness", "preview_looks_nearness"

MARGIN = 0.03
"""By less than so much a curve does not rise: it is of one sample at each step."""


class References(NamedTuple):
    """What previews are compared with: the profile of each clip, see `motion_profile`, and its look."""

    profiles: list[np.ndarray]
    looks: Tensor


def references_of(vae: Autoencoder, clips: Sequence[TrainingClip], plan: Plan, device: torch.device) -> References:
    """Return the references of the first window of each clip, decoded on a device."""
    random = torch.Generator().manual_seed(0)
    windows = [training_window(clip.latents, plan.frames, plan.cells, random) for clip in clips]
    profiles = [motion_profile(decode_clip(vae, window.to(device))) for window in windows]
    return References(profiles, torch.stack([look_of(window) for window in windows]))


def look_of(latents: Tensor) -> Tensor:
    """Return the mean latent of each part of the frame, over all frames (frames, 4, height, width) of a clip."""
    return latent_features(latents).mean(0).float().cpu()


def nearness(references: References, latents: Tensor, frames: np.ndarray) -> dict[str, float]:
    """Return how near a preview is to the clips, each from -1 to 1: its motion to that of all of them on the mean, its
    look to that of the one it is most like."""
    motion = np.mean([likeness(profile, motion_profile(frames)) for profile in references.profiles])
    looks = F.cosine_similarity(references.looks, look_of(latents)[None]).max()
    return {MOTION: float(motion), LOOKS: looks.item()}


def curve_of(lines: Iterable[Mapping], name: str) -> dict[int, float]:
    """Return the values of a curve by their steps, from the lines of a log."""
    return {line["step"]: line[name] for line in lines if name in line}


def recommended(curve: Mapping[int, float]) -> int:
    """Return the first step after which a curve rises no more, by MARGIN at the least."""
    best = max(curve.values())
    return min(step for step, value in curve.items() if value >= best - MARGIN)


def recommendation(lines: Sequence[Mapping], saves: Sequence[Path]) -> str | None:
    """Say which save the curves of a run speak for, None where there are too few previews for any.

    Args:
        saves: the motion files that are kept, with their steps at the ends of their names.
    """
    motion, looks = curve_of(lines, MOTION), curve_of(lines, LOOKS)
    if len(motion) < 2:
        return None
    step, last = recommended(motion), max(motion)
    if step == last:
        return f"The previews' motion was still coming nearer to the clips' at step {last}: more --steps may help."
    there = next((path for path in saves if path.stem.endswith(f"-{step:06d}")), None)
    where = f"that file is {there}" if there else "it is kept with more --keep, where --save-every saves it"
    return (
        f"The previews' motion came no nearer to the clips' after step {step} (nearness {motion[step]:.2f}, at the end"
        f" {motion[last]:.2f}); their looks are at {looks[step]:.2f} there and {looks[last]:.2f} at the end: {where}."
    )
