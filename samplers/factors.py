"""Motion of a clip in numbers, and as slices of its frames."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

REFERENCE = 4 * 32 * 56
"""Numbers in a frame of Stable Diffusion's latents at 448 x 256 pixels."""


def motion_factors(latents: Tensor, norm: Literal["l1", "l2sq"] = "l1") -> Tensor:
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


def mean_frame_difference(latents: Tensor) -> float:
    """Return the mean absolute difference of neighbouring frames (frames, ...), from motion and flicker alike."""
    return (latents[1:] - latents[:-1]).abs().mean().item()


def frame_difference_curve(frames: Tensor) -> Tensor:
    """Return FD_f = mean (x^{f+1} - x^f)²: constant where a clip moves evenly, with a peak at a cut or seam.

    Source: how the seams between Lumiere's temporal windows are judged (Bar-Tal et al. 2024, arXiv 2401.12945).

    Args:
        frames: images of any layout and number type, (frames, ...); their unit is squared in the result.

    Returns:
        float32, (frames - 1,).
    """
    return frames.float().diff(dim=0).square().flatten(1).mean(1)


def seam(curve: Tensor) -> float:
    """Return the highest point of a frame-difference curve over its median: 1 for an even clip, nan for a still one."""
    return (curve.max() / curve.median()).item()


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
