"""Motion and look of a clip, measured on its latents and its images."""

from __future__ import annotations

import copy

import comfy.latent_formats
import torch
from torch import Tensor

from ..samplers.factors import LATENT_FEATURES, appearance_similarity, latent_features

AT_ONCE = 16
"""Frames that an image model sees at a time."""

SIDE = 224
"""Pixels of a side of what DINOv2 sees; frames are squeezed into a square."""


def scaled_latents(latents: Tensor, frames: int | None = None) -> Tensor:
    """Return a clip's latents, as they are in a LATENT, scaled as the network sees them.

    Args:
        frames: of the clip, where its images are known too.

    Raises:
        ValueError: these are no latents of Stable Diffusion, or not of so many frames.
    """
    if latents.ndim != 4 or latents.shape[1] != 4:
        raise ValueError(
            f"These latents have the shape {tuple(latents.shape)}; motion factors are defined for Stable Diffusion's,"
            " (frames, 4, height, width): connect an SD1.5 VAE alone, or neither VAE nor LATENT for flow and plot."
        )
    if frames is not None and len(latents) != frames:
        raise ValueError(f"The LATENT has {len(latents)} frames and the IMAGE {frames}; they must be the same clip.")
    return comfy.latent_formats.SD15().process_in(latents)


def look_of(scaled: Tensor | None, images: Tensor | None, clip_vision) -> Tensor:
    """Return R of a clip, by the image model where there is one, else by its scaled latents."""
    if clip_vision is None:
        return appearance_similarity(latent_features(scaled))
    return appearance_similarity(image_features(clip_vision, images))


def image_features(clip_vision, images: Tensor) -> Tensor:
    """Return a feature of each frame (frames, height, width, 3 or more) by a CLIP_VISION: CLIP's embedding of the
    image, or the class token of a DINO.

    Raises:
        ValueError: it is a DINO, and this version of the host runs one at its own size alone.
    """
    vision = copy.copy(clip_vision)
    if features_name(vision) == "dino":
        vision.image_size = SIDE  # as in training; it takes any size, and the host's own is larger
    parts = images[..., :3].split(AT_ONCE)
    try:
        return torch.cat([vision.encode_image(part, crop=False)["image_embeds"].float().cpu() for part in parts])
    except RuntimeError as error:
        if "must match the size of tensor" not in str(error):
            raise
        raise ValueError(
            "This version of ComfyUI runs DINOv2 at its own size alone, and motion files are trained on its features at"
            f" {SIDE} x {SIDE} pixels: update ComfyUI, use a CLIP, or leave clip_vision unconnected."
        ) from error


def features_name(clip_vision) -> str:
    """Return what kind of features are measured: "latent", "dino" or "clip"."""
    if clip_vision is None:
        return LATENT_FEATURES
    return "dino" if "dino" in type(clip_vision.model).__name__.lower() else "clip"


def are_other(measured: str, trained: str) -> bool:
    """Tell whether features of this kind are surely others than those that a motion file was trained on.

    A file names its features as its trainer did, by a folder or a model, in which DINO or CLIP may be read.
    """
    if LATENT_FEATURES in (measured, trained):
        return measured != trained
    named = [kind for kind in ("dino", "clip") if kind in trained.lower()]
    return bool(named) and measured not in named
