"""Numbers that change over the frames of a video, by some of them."""

from __future__ import annotations

from bisect import bisect
from operator import itemgetter

Keyframes = tuple[tuple[int, float], ...]
"""Frames with their values, in rising order, at least one."""


def value_at(keyframes: Keyframes, frame: int) -> float:
    """Return the value of a frame: linear between keyframes, constant before the first and after the last."""
    after = bisect(keyframes, frame, key=itemgetter(0))
    if after in (0, len(keyframes)):
        return keyframes[max(0, after - 1)][1]
    (start, low), (end, high) = keyframes[after - 1 : after + 1]
    return low + (high - low) * (frame - start) / (end - start)
