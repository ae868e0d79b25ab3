"""What each training step sees: a pure function of (seed, step, index), so that nothing depends on what ran before.

`index` numbers the clips of one step through all processes, accumulated batches and places in a batch. How a step's
clips are divided among those changes nothing, and a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from ...samplers.noise import offset_noise
from ...samplers.schedules import TIMESTEPS, NoiseSchedule, Prediction
from .cache import cut, window_place


@dataclass(frozen=True)
class TrainingClip:
    """A clip ready for training.

    `latents`: every frame at the target fps, scaled, (frames, 4, height, width), at least one window long and at least
    as large as the crop. `text`: its embedded caption, (tokens, width). `features`: of each frame as an image model
    sees it, (frames, width), where a run wants them.
    """

    name: str
    caption: str
    latents: Tensor
    text: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """The numbers that decide what a step sees and how it counts; `cells` is (width, height) in cells of 8 pixels.

    `offset_noise`: to the noise of each channel of a frame one more normal number is added, times this. `schedule`,
    `zero_snr` and `prediction` are the image model's.
    """

    seed: int
    frames: int
    cells: tuple[int, int]
    clips_per_step: int = 1
    crop: Literal["center", "random"] = "center"
    caption_dropout: float = 0.1
    first_frame: Literal["noisy", "clean"] = "noisy"
    weighting: Literal["uniform", "velocity"] = "uniform"
    schedule: NoiseSchedule = "scaled_linear"
    zero_snr: bool = False
    prediction: Prediction = "epsilon"
    offset_noise: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Rows `(clips * frames, ...)`, the frames of a clip adjacent: clean `latents`, `noise`, `timesteps` and `text`.

    `seeds`: of each clip, for what a loss draws. Where a run wants them: `features`, (clips * frames, width), and
    `condition`, known pixels and where they are, (clips * frames, 5, height, width).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    frames: int
    seeds: tuple[int, ...] = (0,)
    features: Tensor | None = None
    condition: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        there = {name: value for name in (*ROWS, *OPTIONAL) if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value.to(device) for name, value in there.items()})


ROWS = "latents", "noise", "timesteps", "text"
OPTIONAL = "features", "condition"


def generator_for(*key) -> torch.Generator:
    """Return a generator on the CPU, for the same draws on every device, seeded by all that `key` says."""
    return torch.Generator().manual_seed(number_below(2**64, *key))


def number_below(end: int, *key) -> int:
    """Draw a whole number from 0 on by all that `key` says; no tensor, so that the memory estimate can draw, too."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") % end


def clip_at(plan: Plan, step: int, index: int, clips: int) -> int:
    """Return the clip of place `index` in `step` (1, 2, …): all clips once, in an order of their own each round."""
    epoch, place = divmod((step - 1) * plan.clips_per_step + index, clips)
    return int(torch.randperm(clips, generator=generator_for(plan.seed, "order", epoch))[place])


def draw(plan: Plan, clip: TrainingClip, no_caption: Tensor, step: int, index: int) -> Batch:
    """Draw what a step sees of a clip: its window, crop, noise, timestep, and whether its caption is dropped."""
    random = generator_for(plan.seed, "clip", step, index)
    place = window_place(clip.latents, plan.frames, plan.cells, random, plan.crop)
    latents = cut(clip.latents, place, plan.frames, plan.cells)
    timestep = torch.randint(TIMESTEPS, (), generator=random)
    dropped = torch.rand((), generator=random) < plan.caption_dropout
    noise = torch.randn(latents.shape, generator=random)
    seed = int(torch.randint(2**62, (), generator=random))
    noise = offset_noise(noise, plan.offset_noise, seed)
    features = None if clip.features is None else clip.features[place[0] : place[0] + plan.frames]
    batch = rows(latents, noise, timestep, no_caption if dropped else clip.text)
    return replace(batch, seeds=(seed,), features=features)


def draw_picture(plan: Plan, clip: TrainingClip, no_caption: Tensor, step: int, index: int) -> Batch:
    """Draw what a step sees of a picture, or of a frame of a clip: as `draw` does of a clip of one frame."""
    return draw(replace(plan, frames=1), replace(clip, features=None), no_caption, step, index)


def rows(latents: Tensor, noise: Tensor, timestep: Tensor, text: Tensor) -> Batch:
    """Return one clip `(frames, 4, h, w)` as a batch; every frame has the clip's timestep and caption."""
    frames = len(latents)
    return Batch(latents.float(), noise, timestep.expand(frames), text.float().expand(frames, *text.shape), frames)


def collate(batches: Sequence[Batch]) -> Batch:
    names = ROWS if batches[0].features is None else (*ROWS, "features")
    tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in names}
    return Batch(**tensors, frames=batches[0].frames, seeds=tuple(seed for b in batches for seed in b.seeds))


def a_picture_of_each(batch: Batch) -> Batch:
    """Return a frame of each clip, drawn by the clip's seed, as a batch of pictures, with the noise it has there."""
    places = [number_below(batch.frames, seed, "picture") for seed in batch.seeds]
    numbers = [clip * batch.frames + place for clip, place in enumerate(places)]
    return Batch(**{name: getattr(batch, name)[numbers] for name in ROWS}, frames=1, seeds=batch.seeds)


def batch_for(
    plan: Plan, clips: Sequence[TrainingClip], no_caption: Tensor, size: int, step: int, number: int
) -> Batch:
    """Return micro-batch `number` of a step (counted over processes and accumulation), of `size` clips of a few."""
    places = range(number * size, (number + 1) * size)
    chosen = [clips[clip_at(plan, step, index, len(clips))] for index in places]
    return collate([draw(plan, clip, no_caption, step, index) for clip, index in zip(chosen, places)])


def batch_from(
    plan: Plan,
    stream: Iterator[TrainingClip],
    no_caption: Tensor,
    size: int,
    step: int,
    number: int,
    drawn: Callable[..., Batch] = draw,
) -> Batch:
    """Return micro-batch `number` of a step, of the next `size` clips of this process's stream.

    Args:
        drawn: `draw`, or `draw_picture` for a micro-batch of pictures.
    """
    places = range(number * size, (number + 1) * size)
    return collate([drawn(plan, next(stream), no_caption, step, index) for index in places])


def pictures_in(step: int, micro_batches: int, share: float) -> int:
    """Return how many of a step's micro-batches are of pictures, the first ones, so that of all so far a share is."""
    until = [math.ceil(round(number * micro_batches * share, 9)) for number in (step - 1, step)]
    return until[1] - until[0]


def clips_hash(clips: Sequence[TrainingClip]) -> str:
    """Tell whether two runs learn from the same clips: a hash of their latents and captions."""
    digest = blake2b(digest_size=16)
    for clip in clips:
        digest.update(repr((clip.caption, tuple(clip.latents.shape))).encode())
        digest.update(clip.latents.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
