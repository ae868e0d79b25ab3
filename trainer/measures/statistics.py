"""What a set of clips lets one say: intervals by bootstrap, differences of two sets, the Fréchet distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
AT_ONCE = 500  # draws of a set that are in memory
INTERVAL = 2.5, 97.5  # percentiles


class Interval(NamedTuple):
    """A mean over `clips` clips and its 95 % interval; nan where it is not known."""

    mean: float
    low: float
    high: float
    clips: int

    @property
    def holds_nought(self) -> bool:
        return not (self.low > 0 or self.high < 0)


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean of numbers, one for each clip, and the percentile bootstrap interval of it (Efron 1979).

    The interval tells how far another choice of such clips might lead, and nothing of other prompts or other seeds than
    theirs. One clip has none. nan: a number that this clip does not have; it is left out.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = np.percentile(drawn_means(known, seed), INTERVAL) if len(known) > 1 else (np.nan, np.nan)
    return Interval(float(known.mean()), float(low), float(high), len(known))


def drawn_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Return means of as many values as there are, drawn from them with repetition, (DRAWS,)."""
    generator = np.random.default_rng(seed)
    parts = (generator.integers(len(values), size=(AT_ONCE, len(values))) for _ in range(DRAWS // AT_ONCE))
    return np.concatenate([values[part].mean(1) for part in parts])


def bootstrap_difference(
    ours: Mapping[str, float], theirs: Mapping[str, float], seed: int = 0
) -> tuple[Interval, bool]:
    """Return the mean difference ours - theirs of numbers of clips by name, with its interval, and whether clips were
    paired.

    Clips of one name are a pair, of the same prompt and seed: their differences are drawn, which hides nothing but what
    the prompts have in common. Without a name in common the two sets are drawn each on its own.
    """
    ours, theirs = ({name: value for name, value in each.items() if not np.isnan(value)} for each in (ours, theirs))
    if pairs := sorted(ours.keys() & theirs.keys()):
        return bootstrap_mean(np.array([ours[name] - theirs[name] for name in pairs]), seed), True
    a, b = (np.array(list(each.values())) for each in (ours, theirs))
    if len(a) < 2 or len(b) < 2:
        return Interval(np.nan, np.nan, np.nan, 0), False
    low, high = np.percentile(drawn_means(a, seed) - drawn_means(b, seed + 1), INTERVAL)
    return Interval(float(a.mean() - b.mean()), float(low), float(high), min(len(a), len(b))), False


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) of the Gaussians that two sets of features suggest.

    tr (Σ₁ Σ₂)^½ is the sum of the singular values of R₁ R₂ᵀ for Σ = Rᵀ R: no root of a matrix is taken, and none of a
    negative number. With few samples it is too large, for the covariances are those of few: it compares with itself
    alone, for equal numbers of samples.

    Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv 1706.08500) for features of a network.

    Args:
        ours, theirs: (samples, dimensions), two samples or more of each.
    """
    (mean_a, a), (mean_b, b) = (centred(features.astype(np.float64)) for features in (ours, theirs))
    roots = np.linalg.svd(np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T, compute_uv=False).sum()
    distance = np.square(mean_a - mean_b).sum() + np.square(a).sum() + np.square(b).sum() - 2 * roots
    return float(max(distance, 0.0))


def centred(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and X with Σ = Xᵀ X."""
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5
