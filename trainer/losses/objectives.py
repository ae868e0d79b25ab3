"""What a step minimises: modules around the network whose forward is the loss of a batch, so that several processes
compute it as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...networks.clip import Clip
from ...networks.config import InflationConfig
from ...networks.inflation import Attached, Inflation
from ..base.division import load
from ..base.host import InflatedUNet, Observed
from ..base.seeding import seeded_by
from ..clips.batches import TIMESTEPS, Batch, Plan, generator_for
from .contrastive import ContrastiveHead, Queue, contrastive_loss, frame_pair
from .denoising import batch_loss, noisy_rows, simple_loss
from .trs import Reduction, trs_of_layer, trs_weights


class Losses(NamedTuple):
    """`total`: what is minimised. `parts`: what it is made of, before its weights, for the log. `projections`: what
    the contrastive loss remembers of the batch, (clips * 2, channels), or nothing."""

    total: Tensor
    parts: dict[str, Tensor]
    projections: Tensor | None = None


class Denoising(nn.Module):
    """The mean denoising loss of a batch."""

    def __init__(self, network: InflatedUNet, plan: Plan):
        super().__init__()
        self.network, self.plan = network, plan

    def forward(self, batch: Batch, step: int) -> Losses:
        return Losses(batch_loss(self.network, batch, self.plan).mean(), {})

    @property
    def inflation(self) -> Inflation:
        assert self.network.inflation is not None, "there is nothing to train"
        return self.network.inflation

    def predict(self, sample: Tensor, timesteps: Tensor, text: Tensor, clip: Clip) -> Tensor:
        """What the network predicts. Between steps call this: it gathers weights that are divided among processes."""
        return self.network(sample, timesteps, text, clip)

    def remember(self, projections: Tensor) -> None:
        """Nothing: this loss looks at a batch alone."""

    def memory(self) -> dict:
        """What a resumed run needs beside the inflation's weights."""
        return {}

    def restore(self, memory: dict) -> None:
        """Takes back what `memory` gave."""


@dataclass(frozen=True)
class Weights:
    """Factors of HARIVO's further losses; 0: off. `ramp`: steps in which those of trs and contrastive rise from 0."""

    regularisation: float = 0.0
    regularise_every: int = 1
    detach_image: bool = False
    trs: float = 0.0
    trs_reduction: Reduction = "row_l1"
    contrastive: float = 0.0
    ramp: int = 1000

    def rising(self, step: int) -> float:
        """The share of their weights that the losses which rise have at step 1, 2, …."""
        return min(1.0, step / self.ramp) if self.ramp else 1.0


class Harivo(Denoising):
    """L = L_simple + w_reg L_reg + w_trs L_TRS + w_dc L_DC.

    Source: HARIVO (Kwon et al. 2024), section 3.4; weights of 0.1 each.
    """

    def __init__(self, network: InflatedUNet, plan: Plan, weights: Weights, queue: int = 1024):
        super().__init__(network, plan)
        self.weights = weights
        self.head = self.queue = None
        if weights.contrastive:
            channels = self.inflation.structure.levels[-1].width
            with seeded_by(generator_for(plan.seed, "head")):
                self.head = ContrastiveHead(channels, middle_cells(network, plan))
            self.queue = Queue(channels, queue)

    def forward(self, batch: Batch, step: int) -> Losses:
        seen = self._observe(batch, Attached(self.inflation), watch=bool(self.weights.trs))
        total = simple = simple_loss(seen.prediction, batch, self.plan).mean()
        parts, projections = {"simple": simple.detach()}, None
        if self.weights.regularisation and step % self.weights.regularise_every == 0:
            parts["regularisation"] = self.regularisation(batch, seen.prediction)
            total = total + self.weights.regularisation * self.weights.regularise_every * parts["regularisation"]
        if self.weights.trs:
            parts["trs"] = self.trs(seen)
            total = total + self.weights.trs * self.weights.rising(step) * parts["trs"]
        if self.head is not None and self.queue is not None:
            first, second = self.pair(batch, seen.middle)
            parts["contrastive"] = contrastive_loss(first, second, self.queue).mean()
            total = total + self.weights.contrastive * self.weights.rising(step) * parts["contrastive"]
            projections = torch.stack([first, second], dim=1).flatten(0, 1).detach()
        return Losses(total, {name: part.detach() for name, part in parts.items()}, projections)

    def _observe(self, batch: Batch, attached: Attached, watch: bool = False) -> Observed:
        penalty = partial(trs_of_layer, reduction=self.weights.trs_reduction) if watch else None
        sample, clip = noisy_rows(batch, self.plan), Clip.of(batch.frames)
        return self.network.observe(sample, batch.timesteps, batch.text, clip, None, [attached], penalty)

    def regularisation(self, batch: Batch, video: Tensor) -> Tensor:
        """L_reg = mean (1 - t / T) ‖f_video - f_image‖², per number: f_image is the image model behind the mapping.

        Source: HARIVO, equation 3; its sum is taken as a mean, like the denoising loss.
        """
        with torch.set_grad_enabled(not self.weights.detach_image):
            image = self._observe(batch, Attached(self.inflation, temporal=0.0, recurrence=0.0)).prediction
        errors = (video.float() - image.float()).square().flatten(1).mean(1)
        return ((1 - batch.timesteps / TIMESTEPS) * errors).mean()

    def trs(self, seen: Observed) -> Tensor:
        """L_TRS: how much the self-attention maps of the way up change from frame to frame, the last ones most."""
        weights = trs_weights(len(seen.penalties), self.weights.trs_reduction)
        return sum((w * penalty for w, penalty in zip(weights, seen.penalties)), seen.prediction.new_zeros(()))

    def pair(self, batch: Batch, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Two frames of each clip, at the frame rate of the middle block, as the contrastive loss sees them."""
        clips = middle.unflatten(0, (len(batch.seeds), -1))
        chosen = [frame_pair(clips.shape[1], seed) for seed in batch.seeds]
        projected = self.head(torch.cat([clip[list(pair)] for clip, pair in zip(clips, chosen)]))
        return projected[::2], projected[1::2]

    def remember(self, projections: Tensor) -> None:
        self.queue.push(projections)

    def memory(self) -> dict:
        if self.head is None:
            return {}
        return {"head": self.head.state_dict(), "queue": self.queue.state_dict()}

    def restore(self, memory: dict) -> None:
        if self.head is not None:
            load(self.head, memory["head"])
            self.queue.load_state_dict(memory["queue"])


def middle_cells(network: InflatedUNet, plan: Plan) -> tuple[int, int]:
    """(width, height) of the middle block's maps: every resize halves, what is odd is rounded up."""
    resizes = len(network.inflation.structure.levels) - 1
    return tuple(-(-cells // 2**resizes) for cells in plan.cells)


def check_middle(config: InflationConfig, frames: int) -> None:
    """Raises ValueError where the middle block sees less than the two frames that the contrastive loss compares."""
    factor = config.resampling.factor if config.resampling else 1
    if frames <= factor:
        raise ValueError(
            f"--contrastive compares two frames in the middle of the U-Net, where {frames} frames have become one: give"
            f" more than {factor} --frames, or halve them at fewer levels"
        )
