"""First convolutions of inpainting models, of nine channels [x (4) | mask (1) | masked picture (4)], as our stem and
back.

A stem is a sum beside the frozen first convolution. It says what an inpainting model's says where that model has the
frozen one's first four channels and bias, as adapters for inpainting have; a model that was trained further as a whole,
Stable Diffusion's own for inpainting among them, has others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Condition

TO_LUMIERE = [0, 1, 2, 3, 5, 6, 7, 8, 4]
TO_INPAINTING = [0, 1, 2, 3, 8, 4, 5, 6, 7]

OF_INPAINTING = Condition(mask="generated", blank="vae_grey")
"""What a stem that was an inpainting model's is used with."""


def in_lumieres_order(weight: Tensor) -> Tensor:
    """Return the weight of a first convolution (channels, 9, 3, 3) for [x | C | M]; its mask keeps its polarity."""
    return weight[:, TO_LUMIERE]


def in_inpainting_order(weight: Tensor) -> Tensor:
    """Invert `in_lumieres_order`."""
    return weight[:, TO_INPAINTING]


def stem_from_inpainting(weight: Tensor, bias: Tensor, base_weight: Tensor, base_bias: Tensor) -> Tensor:
    """Return the weight of the stem, (channels, 5, 3, 3), that makes the first convolution of a base model
    (channels, 4, 3, 3) an inpainting model's; it belongs to `OF_INPAINTING`.

    Raises:
        ValueError: the inpainting model's has other weights for the noisy latents, which no stem can make up for.
    """
    if weight.shape[1:] != (9, 3, 3) or weight.shape[0] != base_weight.shape[0]:
        raise ValueError(
            f"The first convolution is {tuple(weight.shape)}; an inpainting model's for this base is"
            f" ({base_weight.shape[0]}, 9, 3, 3)."
        )
    if not (torch.equal(weight[:, :4], base_weight) and torch.equal(bias, base_bias)):
        raise ValueError(
            "The inpainting model has another first convolution than the base for the noisy latents, which a stem"
            " beside it cannot express: give the base it was made from, or train with `python -m trainer condition`."
        )
    return in_lumieres_order(weight)[:, 4:].contiguous()


def inpainting_from_stem(stem: Tensor, base_weight: Tensor, condition: Condition) -> Tensor:
    """Return the weight (channels, 9, 3, 3) of an inpainting model's first convolution; its bias is the base's.

    Raises:
        ValueError: the stem sees masks or blanks other than an inpainting model's.
    """
    if condition != OF_INPAINTING:
        raise ValueError(
            f"The condition's mask is of {condition.mask!r} pixels and its blank {condition.blank!r}; programs for"
            f" inpainting models give {OF_INPAINTING.mask!r} and {OF_INPAINTING.blank!r}, and weights cannot be turned"
            " round exactly at the border of a picture."
        )
    return in_inpainting_order(torch.cat([base_weight, stem.to(base_weight)], 1)).contiguous()
