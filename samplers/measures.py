"""The numbers of a clip, and what they say together: no smoothness without the motion that it is of.

A frozen clip has the best warping error there is, and a still that is shifted the second best. So `remarks` says what
kind of clip the numbers are those of, and the smoothness of one that does not move of itself counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, nan, sqrt
from typing import NamedTuple

import numpy as np
import torch

from .flow import Step, View, opencv, step_between, view
from .homography import FRAMES, homography_error
from .smoothness import flicker, frame_difference_curve, jumps, loop_seam, order, seam

THUMBNAIL = 16  # pixels of the width on which the order is measured, so that motion stays within a few of them

STILL = 0.4  # percent of the longer side a second, below which a clip does not move to the eye
CAMERA = 0.15  # share of the motion that may be left beside the camera's in a panned still
UNORDERED = 2.2  # order: that of filmed clips was 2.7 or more, of shuffled ones of 16 frames 1.85 or less
LOST = 0.25  # share of pixels that flow can follow: noise has 0.09, fast motion 0.5
FLICKERS = 2.0  # grey levels; real clips at 8 frames a second stayed below 0.6, fast drawn ones below 1
VISIBLE = 0.001  # squared difference (3 % of the brightness) from which on a jump is seen
NAMED = 3  # jumps that a remark names; more are a stutter
REPEATED = 1e-6  # squared difference of colours from 0 to 1 below which a frame is the one before, coded again


@dataclass(frozen=True)
class ClipMeasures:
    """What was measured of a clip; means over its steps from frame to frame unless it says otherwise.

    Of how much it moves:
        motion: length of the optical flow, in percent of the frame's longer side.
        own_motion: the same without the motion of the camera, see `camera_motion`.
    Of how well it holds together:
        followed: share of the pixels that the flow can follow, 0 to 1.
        warping_error: mean squared difference of colours from 0 to 1 along the flow, see `step_between`.
        homography_error: squared grey levels, see `homography_error`.
        order, flicker (grey levels), seam, loop: see smoothness.py. nan: not defined for this clip.
    differences: the frame-difference curve, colours from 0 to 1, one number for each step.
    """

    frames: int
    motion: float
    own_motion: float
    followed: float
    warping_error: float
    homography_error: float
    order: float
    flicker: float
    seam: float
    loop: float
    differences: tuple[float, ...]


class Seen(NamedTuple):
    frame: np.ndarray
    view: View


def measure(frames: Iterable[np.ndarray]) -> ClipMeasures:
    """Measure a clip whose frames come one after the other; a few of them are in memory at a time.

    Args:
        frames: uint8 RGB (height, width, 3), all of one size.

    Raises:
        ValueError: there are none, or OpenCV is not installed.
    """
    start, steps, curve, thumbnails = [], [], [], []
    seen = None
    for before, seen in pairwise(with_none_before(frames)):
        thumbnails.append(thumbnail(seen.view.grey))
        if len(start) < FRAMES:
            start.append(seen.frame)
        if before is not None:
            steps.append(step_between(before.view, seen.view))
            curve.append(squared_difference(before.frame, seen.frame))
    if seen is None:
        raise ValueError("There are no frames to measure.")
    return summed_up(start, seen.frame, steps, torch.tensor(curve), torch.stack(thumbnails))


def with_none_before(frames: Iterable[np.ndarray]):
    yield None
    for frame in frames:
        yield Seen(frame, view(frame))


def thumbnail(grey: np.ndarray) -> torch.Tensor:
    cv2 = opencv()
    height = max(2, round(THUMBNAIL * grey.shape[0] / grey.shape[1]))
    return torch.from_numpy(cv2.resize(grey, (THUMBNAIL, height), interpolation=cv2.INTER_AREA)).float()


def squared_difference(before: np.ndarray, after: np.ndarray) -> float:
    return frame_difference_curve(torch.from_numpy(np.stack([before, after]))).item() / 255**2


def summed_up(
    start: list[np.ndarray], last: np.ndarray, steps: list[Step], curve: torch.Tensor, thumbnails: torch.Tensor
) -> ClipMeasures:
    """Make a clip's numbers of those of its steps."""
    means = Step(*(mean_of(values) for values in zip(*steps))) if steps else Step(0.0, 0.0, 1.0, nan)
    ends = (torch.from_numpy(frame).float() / 255 for frame in (start[0], last))
    return ClipMeasures(
        frames=len(thumbnails),
        **means._asdict(),
        homography_error=homography_error(start),
        order=order(thumbnails),
        flicker=flicker(thumbnails.flatten(1).mean(1)),
        seam=defined(seam, curve) if len(curve) else nan,
        loop=defined(loop_seam, *ends, curve) if len(curve) else nan,
        differences=tuple(curve.tolist()),
    )


def mean_of(values: Iterable[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return float(np.mean(known)) if known else nan


def defined(ratio, *of) -> float:
    """Return a ratio to the median of a curve; nan where the median is that of a still clip."""
    return ratio(*of) if of[-1].median() > REPEATED else nan


def repeated(measures: ClipMeasures) -> int:
    """Count the frames that repeat the one before."""
    return sum(difference < REPEATED for difference in measures.differences)


def is_still(measures: ClipMeasures, fps: float) -> bool:
    return measures.motion * fps < STILL


def is_panned(measures: ClipMeasures) -> bool:
    return measures.own_motion < CAMERA * measures.motion


def moves_of_itself(measures: ClipMeasures, fps: float = 8.0) -> bool:
    """Tell whether a clip is neither still nor a still that is panned: of others the smoothness says something."""
    return not is_still(measures, fps) and not is_panned(measures)


def remarks(measures: ClipMeasures, fps: float = 8.0) -> dict[str, str]:
    """Say what a clip is whose numbers must not be read as those of one that moves and holds together.

    Args:
        fps: frames a second at which it is seen.

    Returns:
        A sentence for each thing that is wrong, by its short name; none for a sound clip.
    """
    if is_still(measures, fps):
        return {"still": "hardly moves"}
    if measures.followed < LOST:
        return {"noise": "frames have nothing in common"}
    said, jumped = {}, visible_jumps(measures)
    if is_panned(measures):
        said["panned still"] = "a pan over a still: nothing moves but the camera"
    if measures.flicker > FLICKERS:
        said["flicker"] = f"flickers by {measures.flicker:.1f} grey levels"
    elif measures.order < UNORDERED:
        said["disorder"] = "frames are not in order"
    if len(jumped) > NAMED:
        said["stutter"] = f"stutters: {len(jumped)} of {measures.frames - 1} steps stand out"
    elif jumped:
        said["jump"] = f"jumps after frame {', '.join(str(step + 1) for step in jumped)}"
    if again := repeated(measures):
        said["repeated frames"] = f"{again} of {measures.frames} frames repeat the one before"
    return said


def visible_jumps(measures: ClipMeasures) -> list[int]:
    curve = measures.differences
    return [step for step in jumps(torch.tensor(curve)) if curve[step] > VISIBLE]


def told(measures: ClipMeasures, size: tuple[int, int]) -> str:
    """Return the numbers of a clip of frames of `size` (width, height) in lines of text, motion beside smoothness."""
    pixels = measures.motion * max(size) / 100
    rms = 100 * sqrt(measures.warping_error) if measures.warping_error >= 0 else nan
    lines = [
        f"motion {measures.motion:.2f} % of the longer side a frame ({pixels:.2f} pixels), {measures.own_motion:.2f} %"
        " without the camera's",
        f"warping error {measures.warping_error:.2e} ({rms:.1f} % of the brightness) on the"
        f" {100 * measures.followed:.0f} % that can be followed",
        f"flicker {measures.flicker:.2f} grey levels, order {measures.order:.1f}, seam {measures.seam:.1f}, loop seam"
        f" {measures.loop:.1f}",
    ]
    return "\n".join([*(line.replace("nan", "-") for line in lines), *remarks(measures).values()])
