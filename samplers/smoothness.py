"""How evenly the frames of a clip follow on one another: differences, seams, jitter, flicker."""

from __future__ import annotations

import torch
from torch import Tensor


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


def jumps(curve: Tensor, times: float = 4.0) -> list[int]:
    """Return the steps of a frame-difference curve that stand out from those beside them, `times` so high as either and
    as the median: cuts and seams, and not where a clip comes to move more."""
    known = torch.nn.functional.pad(curve, (1, 1))
    around = torch.stack([known[:-2], known[2:], curve.median().expand_as(curve)]) if len(curve) else curve[None]
    return (curve > times * around.amax(0)).nonzero()[:, 0].tolist()


def loop_seam(first: Tensor, last: Tensor, curve: Tensor) -> float:
    """Return the difference of a clip's last frame to its first over the median of its curve: 1 or less where the clip,
    played in a loop, goes on at its end as at any other frame; nan for a still one.

    Args:
        first, last: frames in the unit whose square the curve has.
    """
    return (frame_difference_curve(torch.stack([last, first])) / curve.median()).item()


def jitter(frames: Tensor) -> float:
    """Return |second differences| / |first differences| of a clip, norms over all numbers.

    Towards 0 where everything moves evenly, √3 = 1.73 where frames have nothing to do with each other or their order,
    2 where they alternate; nan where nothing changes or there are fewer than three frames.

    Args:
        frames: pictures so small that nothing moves by more than it is wide, or latents, (frames, ...).
    """
    first = frames.float().diff(dim=0)
    return (first.diff(dim=0).norm() / first[1:].norm()).item()


def order(frames: Tensor, apart: int = 4) -> float:
    """Return mean (x^{f+4} - x^f)² / mean (x^{f+1} - x^f)²: by how much more frames differ that are further apart.

    16 where everything moves evenly, 4 for a random walk, 1 where the order of frames means nothing, less where a clip
    goes to and fro, 0 where it repeats itself after 4 frames. nan where nothing changes, or of fewer than 12 frames, by
    chance of which a shuffled clip may well look ordered.

    Args:
        frames: pictures so small that nothing moves by more than it is wide, (frames, ...).
    """
    if len(frames) < 3 * apart:
        return float("nan")
    far, near = ((frames[lag:] - frames[:-lag]).square().mean() for lag in (apart, 1))
    return (far / near).item()


def flicker(brightness: Tensor) -> float:
    """Return the median of |b_{f-1} - 2 b_f + b_{f+1}| / 2: how much the brightness of a clip goes up and down.

    D for a clip whose every second frame is brighter by D; 0 where the brightness stays, or changes evenly. A cut,
    which is one step, does not count; what flickers in one place alone shows in the warping error.

    Args:
        brightness: mean of each frame, (frames,); the result has its unit. Fewer than three: 0.
    """
    bends = brightness.float().diff(n=2).abs() / 2
    return bends.median().item() if len(bends) else 0.0
