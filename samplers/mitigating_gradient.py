"""Mitigating-gradient sampling: the frames of a clip are pulled together while it is sampled.

Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mitigation:
    """The strength and manner in which neighbouring frames are pulled together.

    Args:
        alpha: strength; the paper uses 40, and finds 150 too smooth. Negative: frames are pushed apart.
        max_pull: largest share of a difference that one step takes away. 1/2 takes most out of jitter, whose residual
            is |1 - 2c|; above 1 differences may grow. `inf` is the paper as printed.
        symmetric: both frames move half of the way each, so that the mean over time stays, instead of the later one.
        ref_dim: numbers per frame (channels * height * width) at which `alpha` is meant; it grows with those of the
            clip, so that clips of all sizes are pulled alike. None: the paper as printed.

    Raises:
        ValueError: `max_pull` is negative, or there is no limit to pushing apart.
    """

    alpha: float = 40.0
    max_pull: float = 0.5
    symmetric: bool = False
    ref_dim: int | None = 4096

    def __post_init__(self):
        if self.max_pull < 0:
            raise ValueError(f"max_pull is {self.max_pull}; it is a share of a difference, 0 or more")
        if self.alpha < 0 and math.isinf(self.max_pull):
            raise ValueError("max_pull is no limit, and pushing frames apart (motion boost) needs one: take 0.5")


def mitigate(clips: Tensor, sigma: float, how: Mitigation) -> Tensor:
    """Return predicted clean clips with neighbouring frames moved towards each other, each clip on its own.

    x_{j+1} <- x_{j+1} - c_j D_j,   D_j = x_{j+1} - x_j,   c_j = 2 α σ² exp(-n_j²/S) / S,
    n_j = |D_j|,   S = median(n)² / log(F - 1)

    is what Algorithm 1 of HARIVO, ε <- ε + α (0, G) with G_j = 2 exp(-n_j²/S) D_j σ / S, does to x = x_σ - σ ε. The
    gradients on the right are those before the step. A single cut, many times the median, is left as it is.

    Args:
        clips: (clips, frames, ...), in the scale that the network was trained in.
        sigma: noise over signal at this step.

    Returns:
        As `clips`; itself where there are one or two frames, for which S has no value.
    """
    if clips.shape[1] < 3:
        return clips
    x = clips.flatten(2).to(torch.promote_types(clips.dtype, torch.float32))
    differences = x.diff(dim=1)
    numbers = x.shape[2]
    alpha = how.alpha * (numbers / how.ref_dim if how.ref_dim else 1)
    limit = how.max_pull / 2 if how.symmetric else how.max_pull
    pull = pulls(differences.norm(dim=2), alpha * sigma**2, numbers).clamp(-limit, limit)
    step = pull.unsqueeze(2) * differences
    x = x - F.pad(step, (0, 0, 1, 0))  # what comes later moves back
    if how.symmetric:
        x = x + F.pad(step, (0, 0, 0, 1))
    return x.reshape(clips.shape).to(clips.dtype)


def pulls(norms: Tensor, strength: float, numbers: int) -> Tensor:
    """Return c_j of each difference, (clips, frames - 1) as `norms`; 0 for clips that stand still.

    Args:
        norms: of the differences between neighbouring frames, each of so many `numbers`.
        strength: α σ².
    """
    median = norms.median(dim=1, keepdim=True).values  # of an even number torch takes the lower middle
    bandwidth = median.square() / math.log(norms.shape[1])
    pull = 2 * strength * torch.exp(-norms.square() / bandwidth) / bandwidth
    return torch.where(median > 1e-8 * math.sqrt(numbers), pull, 0.0)


def mitigate_latents(latents: Tensor, sigma: float, how: Mitigation, frames: int | None = None) -> Tensor:
    """Return `mitigate` on latents as samplers hold them.

    Args:
        latents: (clips * frames, channels, height, width), or (clips, channels, frames, height, width).
        frames: of a clip, where they lie in the batch; None: all of it is one clip.
    """
    if latents.ndim == 5:
        return mitigate(latents.movedim(2, 1), sigma, how).movedim(1, 2)
    assert latents.ndim == 4, f"latents of shape {tuple(latents.shape)} have no frames"
    return mitigate(latents.unflatten(0, (-1, frames or len(latents))), sigma, how).flatten(0, 1)
