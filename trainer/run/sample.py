"""Sampling a clip as the users of a motion file do it: DDIM with CFG, its schedule, and mitigating gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ...networks.clip import Clip
from ...samplers.mitigating_gradient import Mitigation, mitigate_latents
from ...samplers.schedules import BETA_END, BETA_START, NoiseSchedule, Prediction, cfg_at, sigma_at, sigmas_of
from ..clips.batches import generator_for
from ..show.progress import counted, working

EARLY = 0.3
"""Share of the schedule, from its noisy end, that `guidance_early` is for (HARIVO, Kwon et al. 2024)."""

OFF = Mitigation(alpha=0)

Model = Callable[[Tensor, Tensor, Tensor, Clip], Tensor]
"""Rows, timesteps, text and clip to the prediction: an `InflatedUNet`, with an inflation or without."""


def ddim(
    schedule: NoiseSchedule = "scaled_linear", prediction: Prediction = "epsilon", zero_snr: bool = False
) -> DDIMScheduler:
    """Return DDIM on a schedule of Stable Diffusion 1.5's betas, with that model's own settings; with `zero_snr` it
    begins at the last timestep, where there is noise alone (Lin et al. 2024, arXiv 2305.08891, section 3.3)."""
    return DDIMScheduler(
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule=schedule,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0 if zero_snr else 1,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )


def starting_noise(seed: int, frames: int, cells: tuple[int, int]) -> Tensor:
    """Return independent noise for every frame, (frames, 4, height, width); `cells` is (width, height)."""
    return torch.randn(frames, 4, cells[1], cells[0], generator=generator_for(seed, "sample"))


@dataclass(frozen=True)
class Sampling:
    """The settings of a sampler: DDIM `steps`, CFG, the noise `schedule` that the model was trained on and what it
    predicts, and `mitigation`.

    `guidance`: CFG scale; 1 leaves out the network without caption. `guidance_early`: the one while more than 70 % of
    the schedule lie ahead, None: the same (HARIVO: 10 to 15, then 7.5). `mitigation`: how neighbouring frames are
    pulled together.
    """

    steps: int = 25
    guidance: float = 7.5
    guidance_early: float | None = None
    mitigation: Mitigation = OFF
    schedule: NoiseSchedule = "scaled_linear"
    prediction: Prediction = "epsilon"
    zero_snr: bool = False

    def guidance_at(self, sigma: float, sigmas: Tensor) -> float:
        """Return CFG scale at a noise level; `sigmas` are those of all timesteps, rising."""
        if self.guidance_early is None:
            return self.guidance
        return cfg_at(sigma, self.guidance_early, self.guidance, sigma_at(EARLY, sigmas))


@torch.no_grad()
def sample_clip(
    model: Model,
    text: Tensor,
    no_caption: Tensor,
    noise: Tensor,
    how: Sampling,
    *,
    first: Tensor | None = None,
    progress: bool = True,
) -> Tensor:
    """Return the latents of one clip, (frames, 4, height, width), on the device of `noise`.

    Args:
        text, no_caption: embedded caption and embedded empty caption, (tokens, width).
        noise: standard normal, (frames, 4, height, width).
        first: latents of a first frame that is given, (4, height, width): the network sees it clean at every step, as
            training with `first_frame="clean"` does. None: the first frame is sampled like the others.
        progress: show a bar, where there are steps enough for one.
    """
    frames, scheduler = len(noise), ddim(how.schedule, how.prediction, how.zero_snr)
    scheduler.set_timesteps(how.steps)
    sigmas = sigmas_of(scheduler.alphas_cumprod)
    captions = [text] if how.guidance == 1 and how.guidance_early in (None, 1) else [text, no_caption]
    context = torch.stack(captions).to(noise).repeat_interleave(frames, dim=0)
    x = given(noise, first)
    hidden = not progress or how.steps < 5
    with working("sampling", len(scheduler.timesteps), "step", hidden=hidden) as bar:
        for timestep in counted(scheduler.timesteps, bar):
            rows, sigma = x.repeat(len(captions), 1, 1, 1), sigmas[timestep].item()
            predicted = model(rows, timestep.to(x.device).expand(len(rows)), context, Clip.of(frames)).float()
            predicted = guided(predicted, frames, how.guidance_at(sigma, sigmas))
            if how.mitigation.alpha:
                predicted = mitigated(predicted, x, sigma, how.mitigation, first)
            x = given(scheduler.step(predicted, timestep, x).prev_sample, first)
    return x


def mitigated(noise: Tensor, x: Tensor, sigma: float, how: Mitigation, first: Tensor | None = None) -> Tensor:
    """Pull the clean frames of a clip x = √ᾱ z + √(1-ᾱ) ε together, and return the noise that then is in x.

    σ = √((1-ᾱ) / ᾱ). A `first` frame that is given is clean in x itself.
    """
    scaled = x * math.sqrt(1 + sigma**2)  # x / √ᾱ = z + σ ε
    return (scaled - mitigate_latents(given(scaled - sigma * noise, first), sigma, how)) / sigma


def given(x: Tensor, first: Tensor | None) -> Tensor:
    return x if first is None else torch.cat([first[None].to(x), x[1:]])


def guided(predicted: Tensor, frames: int, guidance: float) -> Tensor:
    """Return ε = ε_none + guidance (ε_text - ε_none), for rows with the caption and then, where there are any,
    without."""
    if len(predicted) == frames:
        return predicted
    with_text, without = predicted.chunk(2)
    return without + guidance * (with_text - without)
