"""Motion between two frames: optical flow, the camera's part of it, and how well one frame follows from the other.

Frames are uint8 RGB, (height, width, 3), unless a function says otherwise. All is measured on frames that are brought
to 256 pixels on their longer side, so that numbers compare between sizes. OpenCV is imported where it is used: ComfyUI
does not bring it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIDE = 256
"""Pixels of the longer side at which flow is measured."""

LEAST_SIDE = 16  # DIS matches patches of 8 pixels, and below this ends the whole process on some shapes


def opencv():
    """Return the module cv2, or raise ValueError with what to install."""
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "Optical flow needs OpenCV, which ComfyUI does not bring: run `pip install opencv-python-headless` in its"
            " environment and start it again."
        ) from None
    return cv2


class View(NamedTuple):
    """A frame as flow sees it: its own `size` (width, height), and small, in `colour` and in `grey`, uint8."""

    size: tuple[int, int]
    colour: np.ndarray
    grey: np.ndarray


def view(frame: np.ndarray) -> View:
    cv2 = opencv()
    height, width = frame.shape[:2]
    scale = SIDE / max(height, width)
    small = max(LEAST_SIDE, round(width * scale)), max(LEAST_SIDE, round(height * scale))
    colour = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
    return View((width, height), colour, cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY))


def optical_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where each pixel of `before` went in `after`, in pixels: float32 (height, width, 2), x and y.

    DIS, preset medium (Kroeger et al. 2016, arXiv 1603.03590).

    Args:
        before, after: grey, uint8 (height, width), 16 pixels or more on each side.
    """
    cv2 = opencv()
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(before, after, None)


def lengths(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the length of each vector of a flow, (height, width), in percent of the longer side of a frame of `size`
    (width, height) that was made as small as the flow is."""
    across, down = (100 * whole / (small * max(size)) for whole, small in zip(size, flow.shape[1::-1]))
    return np.hypot(across * flow[..., 0], down * flow[..., 1])


def mean_motion(before: View, after: View) -> float:
    """Return the mean length of the flow between two frames, in percent of their longer side."""
    return float(lengths(optical_flow(before.grey, after.grey), before.size).mean())


def warped(picture: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fetch each pixel from where a flow says that it went.

    Args:
        picture: (height, width) or (height, width, channels), uint8 or float32.
        flow: (height, width, 2), in pixels.

    Returns:
        The picture as seen from where the flow starts, bilinear, and which pixels were fetched from within it, bool
        (height, width).
    """
    cv2 = opencv()
    height, width = flow.shape[:2]
    x, y = (
        np.arange(width, dtype=np.float32) + flow[..., 0],
        np.arange(height, dtype=np.float32)[:, None] + flow[..., 1],
    )
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


def followed(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Tell which pixels the flow there and the flow back agree on, bool (height, width): not hidden nor out of sight.

    |f + b(x + f)|² <= 0.01 (|f|² + |b(x + f)|²) + 0.5, in pixels, the check of Sundaram et al. 2010 ("Dense point
    trajectories by GPU-accelerated large displacement optical flow").
    """
    back, inside = warped(backward, forward)
    bound = 0.01 * (squared(forward) + squared(back)) + 0.5
    return inside & (squared(forward + back) <= bound)


def squared(flow: np.ndarray) -> np.ndarray:
    return flow[..., 0] ** 2 + flow[..., 1] ** 2


def camera_motion(flow: np.ndarray, weights: np.ndarray, rounds: int = 5, step: int = 4) -> np.ndarray:
    """Return the affine flow that most of a flow follows, (height, width, 2): a pan, tilt, zoom or roll of the camera.

    Least absolute residuals by reweighted least squares, on every `step`-th pixel.

    Args:
        weights: how much a pixel counts, (height, width), 0 or more.
    """
    places = from_the_middle(*flow.shape[:2])
    few, found = places[::step, ::step].reshape(-1, 3), flow[::step, ::step].reshape(-1, 2)
    given = weights[::step, ::step].reshape(-1).astype(np.float64) + 1e-6  # in float32 a small zoom is lost
    counted = given
    for _ in range(rounds):
        rows = few * counted[:, None]
        affine = np.linalg.solve(rows.T @ few, rows.T @ found)
        counted = given / (0.25 + np.sqrt(squared(found - few @ affine)))
    return places @ affine.astype(np.float32)


def from_the_middle(height: int, width: int) -> np.ndarray:
    """Return 1, x and y of each pixel, from -1 to 1, float32 (height, width, 3)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width)), indexing="ij")
    return np.stack([np.ones_like(x), x, y], -1)


class Step(NamedTuple):
    """How a frame becomes the next one.

    `motion`: mean length of the flow, `own_motion`: of what is left of it without the camera's, where it can be
    followed; both in percent of the longer side. `followed`: share of the pixels that the flow there and back agree on,
    0 to 1. `warping_error`: mean squared difference of these from where they went, colours from 0 to 1; nan where there
    are none.
    """

    motion: float
    own_motion: float
    followed: float
    warping_error: float


def step_between(before: View, after: View) -> Step:
    """Measure one step of a clip.

    The warping error is that of Lai et al. 2018 ("Learning Blind Video Temporal Consistency", arXiv 1808.00449), by
    another flow: colours are compared where occlusion does not hide them.
    """
    forward, backward = (optical_flow(*pair) for pair in ((before.grey, after.grey), (after.grey, before.grey)))
    seen = followed(forward, backward)
    rest = lengths(forward - camera_motion(forward, seen * edges(before.grey)), before.size)
    came, _ = warped(after.colour, forward)
    errors = np.square((came[seen].astype(np.float32) - before.colour[seen]) / 255)
    motion, share = lengths(forward, before.size).mean(), seen.mean()
    return Step(
        float(motion),
        float(rest[seen].mean()) if share else 0.0,
        float(share),
        float(errors.mean()) if share else float("nan"),
    )


def edges(grey: np.ndarray) -> np.ndarray:
    """Return how steep a picture is at each pixel, up to 100: flow is measured there, and a guess on flat ground."""
    cv2 = opencv()
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return np.minimum(np.hypot(across, down), 100)
