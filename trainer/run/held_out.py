"""The loss on clips that training does not see, with the same noise every time, so that its curve can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ...samplers.schedules import TIMESTEPS
from ..clips.batches import Batch, Plan, TrainingClip, generator_for, rows
from ..clips.cache import training_window
from ..clips.known import Known, as_it_is
from ..losses.denoising import batch_loss
from .loop import Training

LEVELS = 4
"""Timesteps at which each clip is measured: the middles of so many equal parts of the schedule."""


def split_held_out(clips: Sequence[TrainingClip], count: int) -> tuple[list[TrainingClip], list[TrainingClip]]:
    """Split into clips to train on and clips to measure on, the latter spread evenly over all.

    Raises:
        ValueError: none would be left to train on.
    """
    if count >= len(clips):
        raise ValueError(
            f"--held-out is {count}, but there are {len(clips)} clips; at least one must be left to train on."
        )
    places = {(2 * k + 1) * len(clips) // (2 * count) for k in range(count)}
    return [c for i, c in enumerate(clips) if i not in places], [c for i, c in enumerate(clips) if i in places]


def fixed_batches(plan: Plan, clips: Sequence[TrainingClip]) -> Iterator[Batch]:
    """Yield each clip at every level, always with the same window, noise and timestep, and with its caption."""
    for number, clip in enumerate(clips):
        random = generator_for(plan.seed, "held out", number)
        latents = training_window(clip.latents, plan.frames, plan.cells, random)
        for level in range(LEVELS):
            timestep = torch.tensor(TIMESTEPS * (2 * level + 1) // (2 * LEVELS))
            batch = rows(latents, torch.randn(latents.shape, generator=random), timestep, clip.text)
            yield replace(batch, seeds=(LEVELS * number + level,))


@torch.no_grad()
def fixed_noise_loss(training: Training, clips: Sequence[TrainingClip], known: Known = as_it_is) -> float:
    """Return the mean loss over clips and levels; what is `known` of a clip is the same every time."""
    accelerator, predict = training.accelerator, training.objective.predict
    losses = []
    with accelerator.autocast():
        for batch in fixed_batches(training.plan, clips):
            batch = known(batch).to(accelerator.device)
            losses.append(batch_loss(predict, batch, training.plan, training.objective.asked(batch)))
    return torch.cat(losses).mean().item()
