"""The toy's autoencoder: the shape of TAESD, trained from nothing on drawn pictures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Generator, Tensor

from ..base.seeding import mixed_precision, seeded_by
from ..show.progress import counted, working
from .drawing import all_scenes, random_pictures
from .textures import rich_pictures


def train_autoencoder(steps: int, seed: int, device: str, batch_size: int = 16) -> AutoencoderTiny:
    """Return an autoencoder whose latents are about standard normal; with 0 steps, one with random weights."""
    generator = Generator().manual_seed(seed)
    with seeded_by(generator):
        vae = AutoencoderTiny().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.98), weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.5e-3, max(steps, 1), pct_start=0.05)
    with working("autoencoder", steps, "step", leave=True, hidden=steps == 0) as progress:
        for _ in counted(range(steps), progress):
            loss, error = autoencoder_loss(vae, training_pictures(batch_size, generator).to(device), generator)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress.set_postfix(psnr=f"{psnr(error):.1f} dB", refresh=False)
    return vae.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def training_pictures(count: int, generator: Generator, size: tuple[int, int] = (64, 64)) -> Tensor:
    """Draw the toy's own scenes for a quarter, and rich textures for the rest, so that real footage decodes too."""
    scenes, _ = random_pictures(all_scenes(), count // 4, size, generator)
    pictures = torch.cat([scenes, rich_pictures(count - count // 4, size, generator)])
    return pictures.contiguous(memory_format=torch.channels_last)


def autoencoder_loss(vae: AutoencoderTiny, pictures: Tensor, generator: Generator) -> tuple[Tensor, float]:
    """Return the loss, and the plain squared error of the pictures.

    Noise on the latents makes near latents decode to near pictures, and the last term keeps each channel's mean at 0
    and variance at 1: both are what a diffusion model needs of the space it learns in.
    """
    with mixed_precision(pictures.device):
        latents = vae.encode(pictures).latents.float()
        noise = 0.05 * torch.randn(latents.shape, generator=generator).to(latents)
        decoded = vae.decode(latents + noise).sample.float()
    error = F.mse_loss(decoded, pictures)
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    spread = mean.square().mean() + (variance - 1).square().mean()
    return error + 0.1 * F.l1_loss(decoded, pictures) + 0.01 * spread, error.item()


def psnr(squared_error: float) -> float:
    """Return peak signal to noise in dB of pictures in [-1, 1], whose peak is 2."""
    return 10 * math.log10(4 / squared_error)
