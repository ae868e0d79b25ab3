"""Known pixels: which pixels of a clip are given, and what of them a network is told, for all tasks of Lumiere's table.

Two polarities, apart by name: `known` is 1 where a pixel is given, as in Lumiere; `mask` is 1 where one is to be made,
as ComfyUI and the inpainting models of Stable Diffusion have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from .masks import feathered, for_frames

CELL = 8
"""Pixels along a side of a latent's cell."""

GREY = 0.5
"""What stands for unknown pixels before the encoder: 0 in its range of -1 to 1."""

Blank = Literal["zero", "vae_grey", "as_given"]
"""What C holds where M is 0. "zero": nothing, ours. "vae_grey": what the encoder makes of grey, as inpainting models of
Stable Diffusion were trained. "as_given": the pictures themselves, which only a cinemagraph has there: Lumiere's paper
does not say that they are masked."""

Encode = Callable[[Tensor], Tensor]
"""Pictures (n, height, width, 3) in 0 to 1 to latents (n, 4, height / 8, width / 8)."""


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """The frames of a clip, and which of their pixels are given.

    `frames`: (frames, height, width, 3) in 0 to 1; what unknown pixels hold is never looked at. `known`: (frames,
    height, width), 1 given, 0 to be made; in between a pixel is given only in part: it is left out of C and M, and
    counts in what keeps pixels while and after sampling, `mask_of` and `composited`. `strengths`: of each frame,
    (frames,), a factor of what the network is told of it; 1 as trained.
    """

    frames: Tensor
    known: Tensor
    strengths: Tensor

    @classmethod
    def of(cls, frames: Tensor, known: Tensor, strengths: Tensor | None = None) -> KnownPixels:
        """Return known pixels after a check of their shapes; a fourth channel of the pictures is dropped.

        Raises:
            ValueError: frames and known pixels differ in number or size, or there are no pictures.
        """
        if frames.ndim != 4 or frames.shape[-1] < 3 or not len(frames):
            raise ValueError(f"The frames are {tuple(frames.shape)}; they must be (frames, height, width, 3).")
        if frames.shape[:3] != known.shape:
            raise ValueError(
                f"There are {sized(frames)} and a mask for {sized(known)}; make both of one size and number."
            )
        return cls(frames[..., :3], known.float(), torch.ones(len(frames)) if strengths is None else strengths)

    @property
    def mask(self) -> Tensor:
        """Return (frames, height, width), 1 where pixels are to be made."""
        return 1 - self.known


def sized(frames: Tensor) -> str:
    return f"{frames.shape[0]} frames of {frames.shape[2]} x {frames.shape[1]}"


def nothing(frames: int, height: int, width: int) -> KnownPixels:
    """Return text-to-video: no pixel is given. Sizes are in pixels."""
    empty = torch.full((frames, height, width, 3), GREY)
    return KnownPixels.of(empty, torch.zeros(frames, height, width))


def still(image: Tensor, frames: int, strength: float = 1.0) -> KnownPixels:
    """Return image-to-video: frame 0 of a clip is the image, (height, width, 3) or (1, height, width, 3)."""
    return key_frames(as_batch(image)[:1], [0], frames, [strength])


def key_frames(
    images: Tensor, positions: Sequence[int], frames: int, strengths: Sequence[float] | None = None
) -> KnownPixels:
    """Return a clip of which some whole frames are given.

    Args:
        images: (n, height, width, 3).
        positions: the frame that each is, from 0; negative ones count from the end.
        strengths: of each, 0 to 1 and above; None: 1.

    Raises:
        ValueError: there are other numbers of images, positions and strengths, or two images for a frame, or a
            position outside of the clip.
    """
    images, strengths = as_batch(images), [1.0] * len(positions) if strengths is None else strengths
    if not len(images) == len(positions) == len(strengths):
        raise ValueError(
            f"There are {len(images)} key frames, {len(positions)} positions and {len(strengths)} strengths; give one"
            " of each for every key frame."
        )
    places = [place_of(position, frames) for position in positions]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise ValueError(f"Frame {twice[0]} is given twice among {list(positions)}; give each frame once.")
    given = nothing(frames, *images.shape[1:3])
    clip, known, factors = given.frames.to(images), given.known, given.strengths
    clip[places], known[places], factors[places] = images[..., :3], 1.0, torch.tensor(strengths, dtype=torch.float32)
    return KnownPixels.of(clip, known.to(images.device), factors)


def place_of(position: int, frames: int) -> int:
    if not -frames <= position < frames:
        raise ValueError(f"A key frame is at {position}; a clip of {frames} frames has {-frames} to {frames - 1}.")
    return position % frames


def hole(video: Tensor, mask: Tensor) -> KnownPixels:
    """Return inpainting: pixels of a video (frames, height, width, 3) are given where the mask, see `for_frames`, is
    0."""
    return KnownPixels.of(video, 1 - for_frames(mask, len(video)).to(video.device))


def canvas(video: Tensor, left: int, top: int, right: int, bottom: int) -> KnownPixels:
    """Return outpainting: a video (frames, height, width, 3) on a canvas with so many more pixels on each side.

    Raises:
        ValueError: one of them is negative.
    """
    if min(left, top, right, bottom) < 0:
        raise ValueError(
            f"The canvas grows by {left}, {top}, {right}, {bottom} pixels (left, top, right, bottom); give 0 or more."
        )
    sides = left, right, top, bottom
    pictures = F.pad(video[..., :3], (0, 0, *sides), value=GREY)
    return KnownPixels.of(pictures, F.pad(torch.ones_like(video[..., 0]), sides))


def cinemagraph(image: Tensor, mask: Tensor, frames: int) -> KnownPixels:
    """Return a picture of which a part moves: frame 0 is the image, and all frames are outside of the mask."""
    video = as_batch(image)[:1].expand(frames, -1, -1, -1)
    known = 1 - for_frames(mask, frames).to(video.device)
    return KnownPixels.of(video, torch.cat([torch.ones_like(known[:1]), known[1:]]))


def as_batch(images: Tensor) -> Tensor:
    return images[None] if images.ndim == 3 else images


def padded(given: KnownPixels, multiple: int = CELL) -> KnownPixels:
    """Repeat the last row and column until both sides are multiples; `[:, :height, :width]` of a clip takes them off
    again."""
    height, width = given.known.shape[1:]
    sides = (0, -width % multiple, 0, -height % multiple)
    pictures = F.pad(rearrange(given.frames, "f h w c -> f c h w"), sides, mode="replicate")
    known = F.pad(given.known[:, None], sides, mode="replicate")[:, 0]
    return replace(given, frames=rearrange(pictures, "f c h w -> f h w c"), known=known)


def cells_known(known: Tensor, patch: int = CELL) -> Tensor:
    """Return M, (frames, 1, height / patch, width / patch): 1 for cells all of whose pixels are given, else 0.

    Raises:
        ValueError: a side is no multiple of the cell's.
    """
    height, width = known.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"The clip is {width} x {height} pixels; both must be multiples of {patch}: pad it first.")
    return 1 - F.max_pool2d((known[:, None] < 1).float(), patch)


def condition(
    given: KnownPixels, encode: Encode, factor: float = 1.0, blank: Blank = "zero", patch: int = CELL
) -> tuple[Tensor, Tensor]:
    """Return C, (frames, 4, height, width) in cells, and M, (frames, 1, height, width): what the network is told.

    The clip is masked before the encoder, so that nothing unknown comes in through its receptive field, and after it,
    so that a clip of which nothing is given has zeros in both. Equal frames in a row are encoded once.

    Source: Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945), section 4, in latents instead of pixels.

    Args:
        factor: that makes scaled latents of what `encode` returns: 0.18215 for Stable Diffusion's raw ones.
        blank: what C holds where M is 0. Unless it is zero, the strengths of frames act on M alone.

    Raises:
        ValueError: the frames' sides are no multiples of a cell's, see `padded`.
    """
    cells, seen = cells_known(given.known, patch), given.frames.float()
    if blank != "as_given":
        seen = torch.where((given.known >= 1)[..., None], seen, GREY)
    latents = factor * once_for_equal(encode)(seen).float()
    cells, strengths = cells.to(latents.device), given.strengths.to(latents.device).view(-1, 1, 1, 1)
    return (latents * cells * strengths if blank == "zero" else latents), cells * strengths


def once_for_equal(encode: Encode) -> Encode:
    """Return an encoder for which frames that are equal to the one before are one frame."""

    def of_few(frames: Tensor) -> Tensor:
        new = torch.tensor([True, *(not torch.equal(*pair) for pair in zip(frames, frames[1:]))])
        latents = encode(frames[new])
        return latents[(new.cumsum(0) - 1).to(latents.device)]

    return of_few


def composited(clip: Tensor, given: KnownPixels, feather: int = 0) -> Tensor:
    """Return a generated clip (frames, height, width, 3) with the known pixels exactly as they were given.

    Frames whose strength is below 1 were not to be kept exactly and stay as they are.

    Args:
        feather: pixels in which, on the known side of a seam, what was made fades into what was given; what is farther
            from the seam is exact.
    """
    given_frames, known = given.frames.to(clip), given.known.to(clip.device)
    made = feathered(1 - known, feather) if feather else 1 - known
    made = torch.where((given.strengths.to(clip.device) < 1)[:, None, None], 1.0, made)[..., None].to(clip)
    return torch.where(made == 0, given_frames, torch.where(made == 1, clip, torch.lerp(given_frames, clip, made)))


def nearest_known(given: KnownPixels) -> list[int]:
    """Return for each frame the nearest one with a known pixel, the earlier of two; of frames that all are to be made,
    each itself."""
    held = given.known.flatten(1).amax(1).nonzero()[:, 0].tolist()
    frames = range(len(given.known))
    return [min(held, key=lambda other: abs(other - frame)) if held else frame for frame in frames]


def hatched(given: KnownPixels) -> Tensor:
    """Return pictures (frames, height, width, 3) of what is known, with stripes where pixels are to be made."""
    height, width = given.known.shape[1:]
    diagonal = torch.arange(height)[:, None] + torch.arange(width)
    stripes = (0.35 + 0.15 * (diagonal // 8 % 2)).to(given.frames)[..., None]
    return torch.lerp(stripes.expand_as(given.frames), given.frames, given.known.to(given.frames)[..., None])
