"""Known pixels on a MODEL: what its motion files are told of the pixels of a clip that are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .asks import Known, asking
from .settings import KEY

if TYPE_CHECKING:
    from ..samplers.conditions import KnownPixels  # for types alone: kornia would slow down ComfyUI's start


def encoded(model, vae, given: KnownPixels) -> tuple[Tensor, Tensor]:
    """Return C, scaled as MODEL's own latents, and M of known pixels, as its motion files were trained to see them."""
    from ..samplers.conditions import condition

    scale = model.get_model_object("latent_format").process_in
    return condition(given, lambda frames: scale(vae.encode(frames)), blank=blank_of(model))


def blank_of(model) -> str:
    """Return what the first motion file with a condition was trained to see where nothing is known."""
    configs = [s.motion.info.config.condition for s in model.get_attachment(KEY) or ()]
    return next((config.blank for config in configs if config), "zero")


def with_known(model, c: Tensor, m: Tensor, node: str, strength: float = 1.0):
    """Return a clone of MODEL whose clips are told of known pixels; MODEL itself at strength 0.

    Args:
        c, m: of `encoded`, (frames, 4 and 1, height, width) of the whole clip; several clips one after the other as
            (clips, frames, 4 and 1, height, width).
        node: who asks, for errors.
        strength: factor of what the condition adds; 1 as trained.

    Raises:
        ValueError: no motion file of MODEL has a condition.
    """
    if strength == 0:
        return model
    value = torch.cat([c, m.to(c)], dim=-3).float()
    return asking(model, KEY, node, known=Known(value if value.ndim == 5 else value[None], strength))
