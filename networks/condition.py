"""Lumiere's condition: known pixels and where they are, through a second stem beside the U-Net's first convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .asked import Given, over
from .frame_attention import zero_init
from .prior import for_frames

CHANNELS = 5
"""C (4) and M (1), in Lumiere's order."""

MaskKind = Literal["known", "generated"]
"""What the stem's fifth channel was trained to see: 1 where pixels are known, as Lumiere's, or 1 where they are to be
made, as inpainting models of Stable Diffusion."""

Filling = Literal["zero", "vae_grey"]
"""What C holds where nothing is known, see `samplers.conditions.Blank`."""

GREY_LATENT = (0.8223, -0.6876, 0.6364, 0.1380)
"""Scaled latents of grey pictures by Stable Diffusion's autoencoder, the constants that ComfyUI takes."""


class ConditionStem(nn.Module):
    """The further channels of a first convolution on [x_t | C | M], as a convolution of their own, zero at the start.

    It has no bias: that of the first convolution is there. A clip of which nothing is known is a clip without a
    condition. It runs before frames are halved, so that each frame has its own C and M.

    Source: Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945), section 4, whose widened first convolution is the same sum.

    Args:
        channels: of the U-Net's finest level.
        mask: how M is handed on: an inpainting model's channel sees 1 - M. Negated weights would be another thing at
            the border of the picture, where a convolution sees zeros.
        blank: what it was trained to see in C where nothing is known.
    """

    def __init__(self, channels: int, mask: MaskKind = "known", blank: Filling = "zero", ops=nn):
        super().__init__()
        self.mask: MaskKind = mask
        self.blank: Filling = blank
        self.conv = zero_init(ops.Conv2d(CHANNELS, channels, 3, padding=1, bias=False))

    def forward(self, x: Tensor, given: Given | None, whole: int, indices: Sequence[int]) -> Tensor | None:
        """Return what is added to activations `(clips * frames, channels, height, width)`, or None.

        Args:
            given: C and M, (clips or 1, whole, 5, height, width), M = 1 where pixels are known, whatever `mask` is.
            whole: frames of the whole clips; `indices`: those of them that the rows of `x` are.

        Raises:
            ValueError: they have another size, or another number of frames.
        """
        seen = self._seen(x, given, whole)
        if seen is None:
            return None
        seen = seen.to(x.device, x.dtype)[:, list(indices)]
        if self.mask == "generated":
            seen = torch.cat([seen[:, :, :-1], 1 - seen[:, :, -1:]], 2)
        return for_frames(self.conv(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]), len(x))

    def _seen(self, x: Tensor, given: Given | None, whole: int) -> Tensor | None:
        """Return C and M, with nothing known where nothing is given; None where that adds nothing."""
        nothing = unknown(self.blank, x.shape[-2:])
        if given is None:
            plain = self.mask == "known" and self.blank == "zero"
            return None if plain else nothing.expand(1, whole, -1, -1, -1)
        check(given.value, whole, x.shape[-2:])
        if given.weight is None:
            return given.value
        nothing = nothing.to(given.value)
        return nothing + over(given.weight, given.value) * (given.value - nothing)


def unknown(blank: Filling, size: Sequence[int]) -> Tensor:
    """Return C and M of a frame of which nothing is known, (5, height, width)."""
    fill = torch.tensor([*(GREY_LATENT if blank == "vae_grey" else (0.0,) * 4), 0.0])
    return fill.view(-1, 1, 1).expand(-1, *size)


def check(value: Tensor, whole: int, size: Sequence[int]) -> None:
    frames, (height, width) = value.shape[1], value.shape[-2:]
    if (height, width) != tuple(size):
        raise ValueError(
            f"The known pixels are of {8 * width} x {8 * height} pixels, and what is sampled has {8 * size[1]} x"
            f" {8 * size[0]}; make both the same size."
        )
    if frames != whole:
        raise ValueError(
            f"Pixels are known of clips of {frames} frames, and what is sampled has {whole}; make both as long."
        )
