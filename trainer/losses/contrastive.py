"""Decoupled contrastive loss: to the middle of the U-Net, two frames of a clip should be alike and other clips not."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.config import InflationConfig
from ..base.division import load
from ..base.seeding import seeded_by
from ..clips.batches import generator_for
from .objective import Seen, Term

TEMPERATURE = 0.1

ENOUGH = 32
"""So many projections must be in a queue before they serve as negatives."""


class ContrastiveHead(nn.Module):
    """Projects what the middle block of a U-Net puts out to the unit sphere; needed in training only.

    Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763), pseudo-code of its appendix; its text speaks of one layer less.

    Args:
        cells: (width, height) of the middle block's maps, 4 x 4 for pictures of 256 x 256.

    Shape: (rows, channels, height, width) in, (rows, channels) out, of length 1, in float32.
    """

    def __init__(self, channels: int, cells: tuple[int, int]):
        super().__init__()
        width, height = cells
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, (height, width), bias=False),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(channels, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
        )

    def forward(self, h: Tensor) -> Tensor:
        return F.normalize(self.layers(h).float(), dim=-1)


def decoupled_contrastive(z1: Tensor, z2: Tensor, negatives: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return -⟨z1, z2⟩ / τ + log Σ_q exp(⟨z, z_q⟩ / τ) of each clip, (clips,), averaged over z = z1 and z = z2.

    The pair itself is not in the sum. The loss falls below zero where a clip's frames are alike.
    Source: HARIVO, L_DC; decoupled as by Yeh et al. 2022 (arXiv 2110.06848).

    Args:
        z1, z2: projections of two frames of each clip, (clips, channels).
        negatives: projections of other clips, (count, channels) for all or (clips, count, channels), at least one.
    """
    with torch.autocast(z1.device.type, enabled=False):  # divided by τ, what half precision rounds off would count
        crowded = [torch.logsumexp((z[:, None] @ negatives.mT)[:, 0] / temperature, dim=-1) for z in (z1, z2)]
    return (crowded[0] + crowded[1]) / 2 - (z1 * z2).sum(-1) / temperature


def contrastive_loss(z1: Tensor, z2: Tensor, queue: Queue, temperature: float = TEMPERATURE) -> Tensor:
    """Return the decoupled contrastive loss of each clip, (clips,), against the queue.

    As long as that holds too little, the batch's other clips are the negatives. A clip that is alone has a loss of 0,
    with gradients of 0: processes that train together must all have a gradient for every weight of the head.
    """
    negatives = queue.entries.to(z1.device) if len(queue) >= ENOUGH else other_clips(z1, z2)
    if not negatives.shape[-2]:
        return 0 * (z1 + z2).sum(-1)
    return decoupled_contrastive(z1, z2, negatives, temperature)


def other_clips(z1: Tensor, z2: Tensor) -> Tensor:
    """Return both projections of every other clip of the batch, for each clip: (clips, 2 * (clips - 1), channels)."""
    clips = len(z1)
    others = torch.tensor([[j for j in range(clips) if j != i] for i in range(clips)], dtype=torch.long)
    return torch.cat([z1[others], z2[others]], dim=1)


class Queue:
    """The newest projections of earlier steps, at most `size` of them, the oldest first; no gradient leads into them.

    `entries`, (count, channels) in float32, is all there is to it; they lie where projections come from. Every process
    holds the same queue.
    """

    def __init__(self, channels: int, size: int = 1024):
        if size < ENOUGH:
            raise ValueError(f"The queue of projections has room for {size}; it must have room for {ENOUGH} or more.")
        self.size = size
        self.entries = torch.empty(0, channels)

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, projections: Tensor) -> None:
        """Take the projections `(rows, channels)` of one step, those of all processes, in the same order on each."""
        longer = torch.cat([self.entries.to(projections.device), projections.detach().to(self.entries.dtype)])
        self.entries = longer[-self.size :].clone()  # a save of the part itself would hold the whole

    def state_dict(self) -> dict[str, Tensor]:
        return {"entries": self.entries}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.entries = state["entries"].to(self.entries)


def frame_pair(frames: int, seed: int) -> tuple[int, int]:
    """Draw two different frames of a clip, every ordered pair as likely as any other.

    Drawn by Python: the estimate of a step's memory runs on tensors that hold no numbers.

    Raises:
        ValueError: the clip has one frame only.
    """
    if frames < 2:
        raise ValueError(
            f"The contrastive loss compares two frames of a clip; {frames} is too few: train with 2 or more."
        )
    first, second = Random(seed).sample(range(frames), 2)
    return first, second


class ContrastiveLoss(nn.Module):
    """The contrastive loss of a batch: two frames of each clip, at the frame rate of the middle block, and the queue.

    Args:
        channels, cells: of the middle block's maps, see `ContrastiveHead`.
        seed: of the head's weights.
    """

    def __init__(self, channels: int, cells: tuple[int, int], seed: int, queue: int = 1024):
        super().__init__()
        with seeded_by(generator_for(seed, "head")):
            self.head = ContrastiveHead(channels, cells)
        self.queue = Queue(channels, queue)

    def forward(self, seen: Seen) -> Tensor:
        clips = seen.middle.unflatten(0, (len(seen.batch.seeds), -1))
        chosen = [frame_pair(clips.shape[1], seed) for seed in seen.batch.seeds]
        projected = self.head(torch.cat([clip[list(pair)] for clip, pair in zip(clips, chosen)]))
        seen.kept.append(projected.detach())
        return contrastive_loss(projected[::2], projected[1::2], self.queue).mean()

    def after_step(self, kept: Tensor) -> None:
        self.queue.push(kept)

    def state(self) -> dict:
        return {"head": self.head.state_dict(), "queue": self.queue.state_dict()}

    def restore(self, state: dict) -> None:
        load(self.head, state["head"])
        self.queue.load_state_dict(state["queue"])


def contrastive_term(
    weight: float, channels: int, cells: tuple[int, int], seed: int, queue: int = 1024, ramp: int = 0
) -> Term:
    return Term("contrastive", weight, ContrastiveLoss(channels, cells, seed, queue), ramp=ramp)


def middle_cells(cells: tuple[int, int], levels: int) -> tuple[int, int]:
    """Return (width, height) of the middle block's maps: every resize halves, what is odd is rounded up."""
    return tuple(-(-side // 2 ** (levels - 1)) for side in cells)


def check_middle(config: InflationConfig, frames: int) -> None:
    """Raise ValueError where the middle block sees less than the two frames that the contrastive loss compares."""
    factor = config.resampling.factor if config.resampling else 1
    if frames <= factor:
        raise ValueError(
            f"--contrastive compares two frames in the middle of the U-Net, where {frames} frames have become one: give"
            f" more than {factor} --frames, or halve them at fewer levels"
        )
