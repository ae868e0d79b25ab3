"""Motion of a clip and change of its look in numbers, and as slices of its frames."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

REFERENCE = 4 * 32 * 56
"""Numbers in a frame of Stable Diffusion's latents at 448 x 256 pixels."""

MOST_MOTION = 2000.0
"""Largest motion factor that users ask for; that of clips where all moves is about 1770."""

Norm = Literal["l1", "l2sq"]
"""How far one frame is from the next: by absolute values, or by squares."""

LATENT_FEATURES = "latent"
"""Name of the features that `latent_features` makes, as motion files have it."""

CELLS = 4
"""Rows and columns of `latent_features`."""


def motion_factors(latents: Tensor, norm: Norm = "l1") -> Tensor:
    """Return the motion factors of a clip, HiGen's measure of how far each frame is from the next.

    γ_f = 7168 mean_{c,y,x} |z^f - z^{f+1}|,   f = 1 … F-1

    That is the L1 norm of the difference at 448 x 256 pixels, and the same number for the same change at any other
    size. Real clips at 8 frames a second: about 50 to 130 where hardly anything moves, 240 to 1500 where something
    does, 1770 where all does. The guidance rounds it, and takes 0 to 4000.

    Source: Qing et al. 2023, "Hierarchical Spatio-temporal Decoupling for Text-to-Video Generation" (arXiv
    2312.04483), which writes an unqualified norm; L1 is the one that its range of 300 to 600 fits.

    Args:
        latents: scaled as the network sees them (0.18215 for SD1.5), (…, frames, channels, height, width).
        norm: "l2sq" for squares in the place of absolute values.

    Returns:
        float32, (…, frames - 1).
    """
    differences = latents.float().diff(dim=-4)
    sizes = differences.abs() if norm == "l1" else differences.square()
    return REFERENCE * sizes.mean((-3, -2, -1))


def latent_features(latents: Tensor) -> Tensor:
    """Return the mean latent of each of 4 x 4 cells of a frame: features where no image model is at hand.

    They tell where on a frame which colour is, and no more: something that crosses the frame changes them as a new
    scene does. They are not centred, for then a frame of one colour would have no direction but that of its noise. Of
    two seconds (scaled latents, by a linear fit of colours to latents): 0.001 to 0.03 for a man with a guitar, 0.1 for
    a skier whom the camera follows, 0.5 for a disc on grey that turns from red to blue, 0.9 to 1.2 over a cut.

    Args:
        latents: scaled as the network sees them, (…, frames, channels, height, width).

    Returns:
        float32, (…, frames, 16 * channels).
    """
    rows = latents.float().flatten(0, -4)
    return F.adaptive_avg_pool2d(rows, CELLS).flatten(1).unflatten(0, latents.shape[:-3])


def appearance_similarity(features: Tensor) -> Tensor:
    """Return R = g gᵀ, how like each other the frames of a clip are: cosines of their features, -1 to 1.

    Features that are zero are like each other, and like nothing else.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), section 3.3, with DINO's features.

    Args:
        features: of any length, (…, frames, d).

    Returns:
        float32, (…, frames, frames), 1 on the diagonal.
    """
    features = features.float()
    unit, empty = F.normalize(features, dim=-1), (features == 0).all(-1, keepdim=True).float()
    similarity = (unit @ unit.mT + empty @ empty.mT).clamp(-1, 1)
    return with_ones_on_the_diagonal(similarity)


def appearance_factor(similarity: Tensor) -> Tensor:
    """Return γ_a = 1 - R_0,F-1, how far the last frame's look is from the first's: 0 for a still clip, 2 at most.

    Args:
        similarity: (…, frames, frames).
    """
    return 1 - similarity[..., 0, -1]


def resampled_curve(values: Tensor, count: int) -> Tensor:
    """Interpolate the numbers of a curve `(…, n)` linearly to `(…, count)`; the first and the last stay."""
    rows = values.reshape(1, -1, values.shape[-1])
    return F.interpolate(rows, count, mode="linear", align_corners=True).reshape(*values.shape[:-1], count)


def resampled_similarity(similarity: Tensor, frames: int) -> Tensor:
    """Interpolate a measured R `(…, n, n)` to another number of frames, both ends staying, 1 on the diagonal."""
    if similarity.shape[-1] == frames:
        return similarity
    columns = resampled_curve(similarity, frames)
    return with_ones_on_the_diagonal(resampled_curve(columns.mT, frames).mT)


def with_ones_on_the_diagonal(similarity: Tensor) -> Tensor:
    """Return R without what rounding or interpolation made of a frame's likeness to itself."""
    return similarity.where(~torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device), 1.0)


def mean_frame_difference(latents: Tensor) -> float:
    """Return the mean absolute difference of neighbouring frames (frames, ...), from motion and flicker alike."""
    return (latents[1:] - latents[:-1]).abs().mean().item()


def x_t_slice(frames: Tensor, position: float = 0.5) -> Tensor:
    """Stack one row of every frame: what moves sideways draws slanted lines, flicker draws stripes across.

    Args:
        frames: (frames, height, width, channels).
        position: of the row, 0 the top to 1 the bottom.

    Returns:
        An image in which time runs down, (frames, width, channels).
    """
    return frames[:, line_at(position, frames.shape[1])]


def y_t_slice(frames: Tensor, position: float = 0.5) -> Tensor:
    """Stack one column of every frame, side by side: what `x_t_slice` is for motion up and down.

    Args:
        frames: (frames, height, width, channels).
        position: of the column, 0 the left edge to 1 the right one.

    Returns:
        An image in which time runs to the right, (height, frames, channels).
    """
    return frames[:, :, line_at(position, frames.shape[2])].transpose(0, 1)


def line_at(position: float, lines: int) -> int:
    """Return the index of the line at a position from 0 to 1."""
    return min(int(position * lines), lines - 1)
