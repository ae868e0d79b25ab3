"""The warping error of the few-shot paper's code: one homography for the whole frame, and no mask.

Its numbers are squared grey levels summed over the colours, and hold the black borders that warping leaves: 33,326,
9,956 and 5,757 in the paper are 105, 58 and 44 of 255 a colour. They compare with the paper; to judge a clip by, there
is the error by optical flow in flow.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .flow import LEAST_SIDE, opencv

FRAMES = 8
"""So many frames of a clip are looked at, from its first on."""

LEAST_MATCHES = 4  # points that a homography is made of


def aligned(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """Return `before` as the homography of its ORB points lays it over `after`, black where nothing comes from.

    ORB points, matched both ways, RANSAC (OpenCV's defaults, reprojection within 5 pixels).

    Args:
        before, after: uint8 (height, width, 3), RGB.

    Returns:
        uint8 (height, width, 3); None where there are no four points to match, as on flat ground
        or where a side has less than 16 pixels.
    """
    cv2 = opencv()
    if min(before.shape[:2]) < LEAST_SIDE:
        return None
    orb = cv2.ORB_create()
    (from_, found), (to, wanted) = (
        orb.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None) for frame in (before, after)
    )
    if found is None or wanted is None:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(found, wanted)
    if len(matches) < LEAST_MATCHES:
        return None
    cv2.setRNGSeed(0)  # RANSAC draws: the same frames shall have the same number
    starts, ends = (
        np.float32([from_[m.queryIdx].pt for m in matches]),
        np.float32([to[m.trainIdx].pt for m in matches]),
    )
    homography, _ = cv2.findHomography(starts, ends, cv2.RANSAC, 5.0)
    if homography is None:
        return None
    return cv2.warpPerspective(before, homography, before.shape[1::-1])


def homography_error(frames: Sequence[np.ndarray]) -> float:
    """Return Σ (warped x^f - x^{f+1})² / (H W), the sum over pixels and colours, mean over the steps of 8 frames.

    Squared grey levels, 0 to 195,075; nan where no step has points to match. Source: the released code of the few-shot
    paper with a recurrent motion prediction.

    Args:
        frames: uint8 (height, width, 3), those of a clip from its first on; more than 8 are not looked at.
    """
    errors = [
        np.square(came.astype(np.float32) - after).sum(-1).mean()
        for before, after in pairwise(frames[:FRAMES])
        if (came := aligned(before, after)) is not None
    ]
    return float(np.mean(errors)) if errors else float("nan")
