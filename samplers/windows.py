"""Context windows of a clip that is too long for one forward, and the fusion of their predictions.

At every denoising step the network runs on each window, and the clip's prediction is the one that is nearest to all of
theirs. Predictions are fused, not noisy frames: noise that each window drew for itself would be averaged away where
windows overlap.

Source: the temporal MultiDiffusion of Bar-Tal et al. 2024, "Lumiere" (arXiv 2401.12945).
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence
from math import ceil

from torch import Tensor


def check_windows(window: int, overlap: int) -> None:
    """Raise ValueError where a window has no frames, or no fewer are shared than it has."""
    if window < 1:
        raise ValueError(f"A window has {window} frames; it must have at least 1.")
    if not 0 <= overlap < window:
        raise ValueError(f"The overlap is {overlap} frames; windows of {window} frames allow 0 to {window - 1}.")


def whole_window(window: int, merged: int) -> int:
    """Return the length of the shortest window of at least so many frames that splits into whole groups of `merged`.

    A network that halves time k times makes one frame of 2^k at its coarsest level. It takes windows of any length; in
    others than these the last frame there is made of fewer, for the price of all.
    """
    return ceil(window / merged) * merged


def window_count(frames: int, window: int, overlap: int) -> int:
    """Return 1 + ⌈(F - T') / (T' - o)⌉ windows of T' frames that overlap by o cover F frames; one where F ≤ T'."""
    return 1 + max(0, ceil((frames - window) / (window - overlap)))


def windows_of(frames: int, window: int, overlap: int) -> list[range]:
    """Return windows of equal length that cover a clip, each `overlap` frames into the one before.

    The last one is shifted back to end with the clip, and may overlap by more. A clip that is no longer than a window
    is one window of its own length.

    Raises:
        ValueError: see `check_windows`; or the clip has no frames.
    """
    check_windows(window, overlap)
    if frames < 1:
        raise ValueError(f"A clip has {frames} frames; it must have at least 1.")
    if frames <= window:
        return [range(frames)]
    starts = [i * (window - overlap) for i in range(window_count(frames, window, overlap))]
    starts[-1] = frames - window
    return [range(start, start + window) for start in starts]


GOLDEN = (5**0.5 - 1) / 2


def turn(step: int, frames: int) -> int:
    """Return the frame with which a clip that loops begins at a step: 0 at first, then as far apart as can be.

    A clip that is run as it lies is cut between its last frame and its first. Where each step cuts it at another place,
    none stays.
    """
    return round(step * GOLDEN * frames) % frames


def coverage(frames: int, windows: Sequence[range]) -> list[int]:
    """Count the windows that each frame is in."""
    return [sum(frame in window for window in windows) for frame in range(frames)]


Fuse = Callable[[range, int, int], list[float]]
"""Weights of a window's frames, given the window, the frames of the clip and the overlap. All are above 0."""


def flat(window: range, frames: int, overlap: int) -> list[float]:
    """Weigh all windows alike, as in the paper. A seam falls to 1/4, whatever the overlap."""
    return [1.0] * len(window)


def pyramid(window: range, frames: int, overlap: int) -> list[float]:
    """Weigh a window the more, the nearer to its middle. A seam falls to 1 / (o + 1)², for o up to half a window."""
    return [float(min(i + 1, len(window) - i)) for i in range(len(window))]


def trapezoid(window: range, frames: int, overlap: int) -> list[float]:
    """Ramp linearly over the overlap; 1 between, and at either end of the clip. A seam falls to 1 / (o + 1)²."""

    def ramp(distance: int) -> float:
        return min(1.0, distance / (overlap + 1))

    up = [1.0 if window.start == 0 else ramp(i + 1) for i in range(len(window))]
    down = [1.0 if window.stop == frames else ramp(len(window) - i) for i in range(len(window))]
    return [min(pair) for pair in zip(up, down)]


FUSES: dict[str, Fuse] = {"pyramid": pyramid, "trapezoid": trapezoid, "flat": flat}


def fuse(predictions: Sequence[Tensor], windows: Sequence[range], weights: Sequence[list[float]], frames: int, dim=0):
    """Return the clip J that is nearest to the predictions Φ_i for its windows: argmin Σ_i Σ_f w_i(f) ‖J_f - Φ_i,f‖².

    That is J_f = Σ_i w_i(f) Φ_i,f / Σ_i w_i(f), over the windows that frame f is in.

    Args:
        predictions: of each window, frames along `dim`.
        weights: of each window's frames.
    """
    shape = list(predictions[0].shape)
    shape[dim] = frames
    mean, totals = predictions[0].new_zeros(shape), [0.0] * frames
    for prediction, window, weight in zip(predictions, windows, weights):
        fuse_in(mean, totals, prediction, window, weight, dim)
    return mean


def fuse_in(
    mean: Tensor, totals: MutableSequence[float], prediction: Tensor, window: range, weights: list[float], dim: int = 0
) -> None:
    """Add one window to `mean` and `totals`, in place; both are zero before the first.

    J ← J + w / (W + w) (Φ - J), W ← W + w for each frame. Written so that windows which agree leave no rounding:
    where frames do not depend on each other, the result with windows is that without them, bit for bit.
    """
    for frame, weight in zip(window, weights):
        totals[frame] += weight
    share = mean.new_tensor([weight / totals[frame] for frame, weight in zip(window, weights)])
    part = mean.narrow(dim, window.start, len(window))
    part.lerp_(prediction.to(mean), share.view([-1 if axis == dim else 1 for axis in range(mean.ndim)]))
