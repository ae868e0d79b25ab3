"""What each training step sees: a pure function of (seed, step, index), so that nothing depends on what ran before.

`index` numbers the clips of one step through all processes, accumulated batches and places in a batch. How a step's
clips are divided among those changes nothing, and a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from ...samplers.schedules import TIMESTEPS, NoiseSchedule
from .cache import training_window


@dataclass(frozen=True)
class TrainingClip:
    """A clip ready for training.

    `latents`: every frame at the target fps, scaled, (frames, 4, height, width), at least one window long and at least
    as large as the crop. `text`: its embedded caption, (tokens, width).
    """

    name: str
    caption: str
    latents: Tensor
    text: Tensor


@dataclass(frozen=True)
class Plan:
    """The numbers that decide what a step sees and how it counts; `cells` is (width, height) in cells of 8 pixels."""

    seed: int
    frames: int
    cells: tuple[int, int]
    clips_per_step: int = 1
    crop: Literal["center", "random"] = "center"
    caption_dropout: float = 0.1
    first_frame: Literal["noisy", "clean"] = "noisy"
    weighting: Literal["uniform", "velocity"] = "uniform"
    schedule: NoiseSchedule = "scaled_linear"


@dataclass(frozen=True)
class Batch:
    """Rows `(clips * frames, ...)`, the frames of a clip adjacent: clean `latents`, `noise`, `timesteps` and `text`.

    `seeds`: of each clip, for what a loss draws.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    frames: int
    seeds: tuple[int, ...] = (0,)

    def to(self, device: torch.device) -> Batch:
        return replace(self, **{name: getattr(self, name).to(device) for name in ROWS})


ROWS = "latents", "noise", "timesteps", "text"


def generator_for(*key) -> torch.Generator:
    """Return a generator on the CPU, for the same draws on every device, seeded by all that `key` says."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def clip_at(plan: Plan, step: int, index: int, clips: int) -> int:
    """Return the clip of place `index` in `step` (1, 2, …): all clips once, in an order of their own each round."""
    epoch, place = divmod((step - 1) * plan.clips_per_step + index, clips)
    return int(torch.randperm(clips, generator=generator_for(plan.seed, "order", epoch))[place])


def draw(plan: Plan, clip: TrainingClip, no_caption: Tensor, step: int, index: int) -> Batch:
    """Draw what a step sees of a clip: its window, crop, noise, timestep, and whether its caption is dropped."""
    random = generator_for(plan.seed, "clip", step, index)
    latents = training_window(clip.latents, plan.frames, plan.cells, random, plan.crop)
    timestep = torch.randint(TIMESTEPS, (), generator=random)
    dropped = torch.rand((), generator=random) < plan.caption_dropout
    noise = torch.randn(latents.shape, generator=random)
    seed = int(torch.randint(2**62, (), generator=random))
    return replace(rows(latents, noise, timestep, no_caption if dropped else clip.text), seeds=(seed,))


def rows(latents: Tensor, noise: Tensor, timestep: Tensor, text: Tensor) -> Batch:
    """Return one clip `(frames, 4, h, w)` as a batch; every frame has the clip's timestep and caption."""
    frames = len(latents)
    return Batch(latents.float(), noise, timestep.expand(frames), text.float().expand(frames, *text.shape), frames)


def collate(batches: Sequence[Batch]) -> Batch:
    tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in ROWS}
    return Batch(**tensors, frames=batches[0].frames, seeds=tuple(seed for b in batches for seed in b.seeds))


def batch_for(
    plan: Plan, clips: Sequence[TrainingClip], no_caption: Tensor, size: int, step: int, number: int
) -> Batch:
    """Return micro-batch `number` of a step (counted over processes and accumulation), of `size` clips of a few."""
    places = range(number * size, (number + 1) * size)
    chosen = [clips[clip_at(plan, step, index, len(clips))] for index in places]
    return collate([draw(plan, clip, no_caption, step, index) for clip, index in zip(chosen, places)])


def batch_from(
    plan: Plan, stream: Iterator[TrainingClip], no_caption: Tensor, size: int, step: int, number: int
) -> Batch:
    """Return micro-batch `number` of a step, of the next `size` clips of this process's stream."""
    places = range(number * size, (number + 1) * size)
    return collate([draw(plan, next(stream), no_caption, step, index) for index in places])


def clips_hash(clips: Sequence[TrainingClip]) -> str:
    """Tell whether two runs learn from the same clips: a hash of their latents and captions."""
    digest = blake2b(digest_size=16)
    for clip in clips:
        digest.update(repr((clip.caption, tuple(clip.latents.shape))).encode())
        digest.update(clip.latents.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
