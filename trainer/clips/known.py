"""What is known of training clips: a task for each, drawn by its share, and the condition that the network is given.

Frames come from the clips' own latents, decoded: masking before the encoder, as sampling does it, needs pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from ...samplers.conditions import KnownPixels, condition, hole
from ..base.load import decode_latents, encode_frames
from .batches import Batch, generator_for
from .tubes import border, tube

TASKS = "text_to_video", "image_to_video", "key_frames", "inpaint", "outpaint", "cinemagraph"
"""Of Lumiere's table (Bar-Tal et al. 2024, arXiv 2401.12945, section 4), and key frames."""

MOST_KEY_FRAMES = 4


@dataclass(frozen=True)
class Told:
    """One clip of a task: its clean `latents`, (frames, 4, height, width), and `condition`, C and M, (frames, 5,
    height, width). `given`: its known pixels where they were masked as pixels, None where whole frames are known."""

    latents: Tensor
    condition: Tensor
    given: KnownPixels | None = None


class Pixels:
    """An autoencoder between scaled latents and pictures (n, height, width, 3) in 0 to 1, on a device in between."""

    def __init__(self, vae: nn.Module, device: torch.device):
        self.vae, self.device = vae, device

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        vae = self.vae.to(self.device)
        pictures = (2 * frames - 1).permute(0, 3, 1, 2).to(self.device, next(vae.parameters()).dtype)
        return torch.cat([encode_frames(vae, one[None]) for one in pictures]).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.vae.to(self.device)
        given = latents.to(self.device, next(vae.parameters()).dtype)
        pictures = torch.cat([decode_latents(vae, one[None]) for one in given]).float().cpu()
        return (pictures.permute(0, 2, 3, 1) + 1) / 2

    def offload(self) -> None:
        self.vae.cpu()


def of_frames(latents: Tensor, places: list[int]) -> Told:
    """Return a clip of which whole frames are known: C is what is in their latents, nothing of others can be in it."""
    m = torch.zeros_like(latents[:, :1])
    m[places] = 1
    return Told(latents, torch.cat([latents * m, m], 1))


def of_pixels(latents: Tensor, given: KnownPixels, pixels: Pixels) -> Told:
    return Told(latents, torch.cat(condition(given, pixels.encode), 1), given)


def cinemagraph(latents: Tensor, mask: Tensor, pixels: Pixels) -> Told:
    """Return a clip that stands still outside of a mask (frames, height, width), as the network is told: its first
    frame there in all frames, and in the target too."""
    video = pixels.decode(latents)
    video = torch.where(mask[..., None] > 0, video, video[:1])
    given = hole(video, torch.cat([torch.zeros_like(mask[:1]), mask[1:]]))
    return of_pixels(pixels.encode(video), given, pixels)


def key_places(frames: int, random: Generator) -> list[int]:
    """Draw one to four frames of a clip, never all of them."""
    most = max(1, min(MOST_KEY_FRAMES, frames - 1))
    count = int(torch.randint(1, most + 1, (), generator=random))
    return sorted(torch.randperm(frames, generator=random)[:count].tolist())


def told(task: str, latents: Tensor, random: Generator, pixels: Pixels) -> Told:
    """Return a clip of a task; `latents` are scaled, (frames, 4, height, width)."""
    frames, size = len(latents), (8 * latents.shape[-2], 8 * latents.shape[-1])
    if task == "text_to_video":
        return of_frames(latents, [])
    if task == "image_to_video":
        return of_frames(latents, [0])
    if task == "key_frames":
        return of_frames(latents, key_places(frames, random))
    if task == "cinemagraph":
        return cinemagraph(latents, tube(frames, size, random, moving=False), pixels)
    mask = border(frames, size, random) if task == "outpaint" else tube(frames, size, random)
    return of_pixels(latents, hole(pixels.decode(latents), mask), pixels)


@dataclass(frozen=True)
class KnownTasks:
    """Draws a task for each clip of a batch, by `shares`, which count relative to their sum, and its condition.

    What is drawn depends on the seed of a clip alone, so that a resumed run sees the same.
    """

    shares: dict[str, float]
    pixels: Pixels

    def task_for(self, random: Generator) -> str:
        numbers = torch.tensor([self.shares[name] for name in TASKS])
        return TASKS[int(torch.multinomial(numbers, 1, generator=random))]

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with its condition; pictures are left as they are."""
        if batch.frames == 1:
            return batch
        each = [
            self.of_clip(latents, generator_for(seed, "known"))
            for latents, seed in zip(batch.latents.split(batch.frames), batch.seeds)
        ]
        self.pixels.offload()
        return replace(
            batch,
            latents=torch.cat([one.latents for one in each]),
            condition=torch.cat([one.condition for one in each]),
        )

    def of_clip(self, latents: Tensor, random: Generator) -> Told:
        return told(self.task_for(random), latents, random, self.pixels)


Known = Callable[[Batch], Batch]
"""Gives a batch its condition, or leaves it as it is."""


def as_it_is(batch: Batch) -> Batch:
    return batch
