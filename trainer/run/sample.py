"""Sampling a clip: DDIM with classifier-free guidance, as the users of a motion file do it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import tqdm

from ...networks.clip import Clip
from ..clips.batches import NoiseSchedule, generator_for

Model = Callable[[Tensor, Tensor, Tensor, Clip], Tensor]
"""Rows, timesteps, text and clip to the prediction of the noise: an `InflatedUNet`, with an inflation or without."""


def ddim(schedule: NoiseSchedule = "scaled_linear") -> DDIMScheduler:
    """DDIM on a schedule of Stable Diffusion 1.5's betas, with that model's own settings."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=schedule,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def starting_noise(seed: int, frames: int, cells: tuple[int, int]) -> Tensor:
    """Independent noise for every frame, (frames, 4, height, width); `cells` is (width, height)."""
    return torch.randn(frames, 4, cells[1], cells[0], generator=generator_for(seed, "sample"))


@torch.no_grad()
def sample_clip(
    model: Model,
    text: Tensor,
    no_caption: Tensor,
    noise: Tensor,
    *,
    first: Tensor | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    schedule: NoiseSchedule = "scaled_linear",
    progress: bool = True,
) -> Tensor:
    """The latents of one clip, (frames, 4, height, width), on the device of `noise`.

    Args:
        text, no_caption: embedded caption and embedded empty caption, (tokens, width).
        noise: standard normal, (frames, 4, height, width).
        first: latents of a first frame that is given, (4, height, width): the network sees it clean at every step, as
            training with `first_frame="clean"` does. None: the first frame is sampled like the others.
        guidance: scale of classifier-free guidance; 1 leaves out the network without caption.
        schedule: of the noise that the model was trained on.
        progress: show a bar, where there are steps enough for one.
    """
    frames, scheduler = len(noise), ddim(schedule)
    scheduler.set_timesteps(steps)
    captions = [text] if guidance == 1 else [text, no_caption]
    context = torch.stack(captions).to(noise).repeat_interleave(frames, dim=0)
    x = given(noise, first)
    hidden = not progress or steps < 5
    for timestep in tqdm(scheduler.timesteps, desc="sampling", unit="step", leave=False, disable=hidden):
        rows = x.repeat(len(captions), 1, 1, 1)
        predicted = model(rows, timestep.to(x.device).expand(len(rows)), context, Clip.of(frames)).float()
        x = given(scheduler.step(guided(predicted, frames, guidance), timestep, x).prev_sample, first)
    return x


def given(x: Tensor, first: Tensor | None) -> Tensor:
    return x if first is None else torch.cat([first[None].to(x), x[1:]])


def guided(predicted: Tensor, frames: int, guidance: float) -> Tensor:
    """ε = ε_none + guidance (ε_text - ε_none), for rows with the caption and then, where there are any, without."""
    if len(predicted) == frames:
        return predicted
    with_text, without = predicted.chunk(2)
    return without + guidance * (with_text - without)
