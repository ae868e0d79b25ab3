"""Training the toy's U-Net on pictures that are drawn as they are needed, and sampling from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor

from ...samplers.schedules import alphas_cumprod
from ..base.load import Base, decode_latents, encode_frames, token_ids
from ..base.seeding import mixed_precision
from ..losses.denoising import add_noise, velocity_weight
from ..run.optimiser import make_ema
from ..run.sample import ddim, guided
from ..show.progress import counted, working
from .drawing import MOTIONS, Scene, random_pictures
from .parts import read_tokens

PICTURE = 64
"""Width and height in pixels of the pictures that the toy learns from; 8 x 8 latents."""


@dataclass(frozen=True)
class Recipe:
    """The training of the U-Net. `save_every`: steps between checkpoints on the way."""

    steps: int
    batch_size: int
    learning_rate: float
    average: float = 0.995
    save_every: int = 300


def train_unet(
    base: Base,
    scenes: Sequence[Scene],
    recipe: Recipe,
    generator: Generator,
    save: Callable[[UNet2DConditionModel], None],
) -> UNet2DConditionModel:
    """Train `base.unet` and return the moving average of its weights, which `save` also gets on the way."""
    unet = base.unet.train().requires_grad_(True).to(memory_format=torch.channels_last)
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # bf16 on a CPU: a fifth less time a step than torch's fused attention
    average = make_ema(unet, recipe.average)
    optimiser = torch.optim.AdamW(
        unet.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, recipe.steps))
    with working("U-Net", recipe.steps, "step", leave=True) as progress:
        for step, batch in enumerate(counted(batches(base, scenes, recipe, generator), progress), 1):
            loss = denoising_loss(unet, *batch, generator)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            average.update_parameters(unet)
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if step % recipe.save_every == 0 and step < recipe.steps:
                save(average.module)
    return average.module.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def warm_cosine(step: int, steps: int, warm_up: int = 40) -> float:
    """Return factor on the learning rate: up in a line over `warm_up` steps, then down to zero along half a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * min(1, (step - warm_up) / max(1, steps - warm_up)))


def spread_at(progress: float) -> float:
    """Return how widely shapes are strewn after a share of the steps: near the middle for 0.25, everywhere after 0.7.

    Shapes that lie at one place and in one size follow their captions after a few hundred steps; strewn from the
    start, they do not after two thousand.
    """
    return 0.15 + 0.85 * min(1, max(0, (progress - 0.25) / 0.45))


def batches(
    base: Base, scenes: Sequence[Scene], recipe: Recipe, generator: Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return a pair for each step: scaled latents (n, 4, 8, 8) and text (n, 77, 768), both on the U-Net's device."""
    device = base.unet.device
    ids = token_ids(base.tokenizer, ["", *captions_of(scenes)]).to(device)
    for step in range(recipe.steps):
        spread = spread_at(step / recipe.steps)
        pictures, scene = random_pictures(scenes, recipe.batch_size, (PICTURE, PICTURE), generator, spread)
        caption = random_captions(scene, generator).to(device)
        with torch.no_grad():
            with mixed_precision(device):
                latents = encode_frames(base.vae, pictures.to(device)).float()
            text = read_tokens(base.text_encoder, ids[caption])
        yield latents, text


def captions_of(scenes: Sequence[Scene]) -> list[str]:
    """Return each scene's caption as it is, then followed by the words of each motion."""
    return [words for s in scenes for words in (s.caption, *(f"{s.caption}, {m.words}" for m in MOTIONS.values()))]


def random_captions(scenes: Tensor, generator: Generator) -> Tensor:
    """Draw which of "" and `captions_of` stands beside pictures of these scenes, (n,): one in ten is empty.

    One in six names a motion. A picture cannot show any; the toy meets the words so that they do not upset it when
    clips are captioned with them.
    """
    count = len(scenes)
    motion = torch.randint(1, 1 + len(MOTIONS), (count,), generator=generator)
    motion *= torch.rand(count, generator=generator) < 1 / 6
    caption = 1 + scenes * (1 + len(MOTIONS)) + motion
    return caption * (torch.rand(count, generator=generator) >= 0.1)


def denoising_loss(unet: UNet2DConditionModel, latents: Tensor, text: Tensor, generator: Generator) -> Tensor:
    """Return squared error of the predicted noise, weighted as in v-prediction: noisy steps decide on colour and
    shape."""
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    times = torch.randint(1000, (len(latents),), generator=generator).to(latents.device)
    signal = alphas_cumprod().to(latents.device)[times]
    noisy = add_noise(latents, noise, signal).contiguous(memory_format=torch.channels_last)
    with mixed_precision(latents.device):
        predicted = unet(noisy, times, text).sample.float()
    return (velocity_weight(signal) * (predicted - noise).square().mean((1, 2, 3))).mean()


@torch.no_grad()
def sample_pictures(base: Base, captions: Sequence[str], seed: int, guidance: float = 4.0, steps: int = 25) -> Tensor:
    """Return pictures for captions, (n, 3, 64, 64) in [-1, 1], by DDIM with classifier-free guidance."""
    count, device, schedule = len(captions), base.unet.device, ddim(base.schedule, base.prediction)
    schedule.set_timesteps(steps)
    text = read_tokens(base.text_encoder, token_ids(base.tokenizer, [*captions, *[""] * count]).to(device))
    latents = torch.randn(count, 4, PICTURE // 8, PICTURE // 8, generator=Generator().manual_seed(seed)).to(device)
    for time in schedule.timesteps:
        predicted = base.unet(latents.repeat(2, 1, 1, 1), time, text).sample
        latents = schedule.step(guided(predicted, count, guidance), time, latents).prev_sample
    return decode_latents(base.vae, latents)
