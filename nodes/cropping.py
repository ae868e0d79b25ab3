"""Crops in the host's terms: from IMAGE and MASK to a box of both."""

from __future__ import annotations

from torch import Tensor

from ..samplers.crops import Crop, box_around, cut, resized
from .inpainting import fitted

NODE = "Crop to Mask"


def cropped(image: Tensor, mask: Tensor, margin: int, width: int, height: int) -> tuple[Tensor, Tensor, Crop]:
    """Return the box around a mask of pictures and of the mask, and where it lies.

    Raises:
        ValueError: one of both sides is 0, or the mask is empty.
    """
    if (width == 0) != (height == 0):
        raise ValueError(f"{NODE} has a width of {width} and a height of {height}: set both, or leave both at 0.")
    mask = fitted(mask, image)
    box = box_around(mask, margin, width / height if width else None)
    size = (width, height) if width else (box.width, box.height)
    return resized(cut(image, box), size), resized(cut(mask, box)[..., None], size)[..., 0], Crop(image, box, size)
