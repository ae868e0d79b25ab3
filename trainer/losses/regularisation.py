"""HARIVO's regularisation: every frame stays near what the image model makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...networks.inflation import Attached
from ...samplers.schedules import TIMESTEPS
from .objective import Seen, Term


def regularisation(seen: Seen, detach_image: bool = False) -> Tensor:
    """L_reg = mean (1 - t / T) ‖f_video - f_image‖², per number: f_image is the image model behind the mapping.

    Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763), L_reg; its sum is taken as a mean, like the denoising loss.

    Args:
        detach_image: without the gradient through f_image, which reaches the mapping network alone.
    """
    with torch.set_grad_enabled(not detach_image):
        image = seen.observe(Attached(seen.inflation, temporal=0.0, recurrence=0.0)).prediction
    errors = (seen.prediction.float() - image.float()).square().flatten(1).mean(1)
    return ((1 - seen.batch.timesteps / TIMESTEPS) * errors).mean()


def regularisation_term(weight: float, every: int = 1, detach_image: bool = False) -> Term:
    return Term("regularisation", weight, lambda seen: regularisation(seen, detach_image), every)
