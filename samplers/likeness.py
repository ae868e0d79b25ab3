"""How alike the motion of two clips is, wherever on the frame, however fast and from whichever moment on it happens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, product

import numpy as np

from .flow import optical_flow, view

SPEEDS = 0.5, 0.75, 1.0, 1.5, 2.0
"""The second clip is seen at so many times its speed."""

LEAST_SHARED = 0.5
"""Share of the shorter clip that both have to have in common."""


def motion_profile(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return how things move from each frame to the next, (frames - 1, 4): to the right, down, away from their own
    middle, and clockwise around it; each in percent of the longer side of a frame.

    They are means of the flow weighted by its length, so that neither the place nor the size of what moves counts.

    Args:
        frames: uint8 (height, width, 3).
    """
    views = [view(frame) for frame in frames]
    return np.stack([moments(optical_flow(a.grey, b.grey)) for a, b in pairwise(views)])


def moments(flow: np.ndarray) -> np.ndarray:
    """Return the four numbers of one flow, (height, width, 2) in pixels."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width]
    weights = np.hypot(flow[..., 0], flow[..., 1])
    weights = weights / max(weights.sum(), 1e-6)
    across, down = (x - (weights * x).sum(), y - (weights * y).sum())
    far = np.hypot(across, down) + 1e-6
    right, below = flow[..., 0], flow[..., 1]
    seen = right, below, (across * right + down * below) / far, (across * below - down * right) / far
    return np.array([100 * (weights * number).sum() / max(height, width) for number in seen])


def likeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how alike two profiles are, -1 to 1: their cosine at the speed and the shift in time where it is largest.

    Two clips of noise have about 0.5 by that choice alone, a clip and itself 1.

    Args:
        ours, theirs: see `motion_profile`; of any lengths.
    """
    found = [cosine(*both) for speed in SPEEDS for both in overlaps(ours, at_speed(theirs, speed))]
    return max(found, default=0.0)


def at_speed(profile: np.ndarray, speed: float) -> np.ndarray:
    """Return a profile as it is at so many times its speed, between its first and its last step."""
    places = np.arange(0, len(profile) - 1 + 1e-9, speed)
    return np.stack([np.interp(places, np.arange(len(profile)), column) for column in profile.T], 1)


def overlaps(ours: np.ndarray, theirs: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Return what two profiles share at every shift that leaves enough of them."""
    least = max(1, round(LEAST_SHARED * min(len(ours), len(theirs))))
    for here, there in product(range(len(ours)), range(len(theirs))):
        length = min(len(ours) - here, len(theirs) - there)
        if min(here, there) == 0 and length >= least:
            yield ours[here : here + length], theirs[there : there + length]


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    size = np.linalg.norm(ours) * np.linalg.norm(theirs)
    return float((ours * theirs).sum() / size) if size > 1e-6 else 0.0
