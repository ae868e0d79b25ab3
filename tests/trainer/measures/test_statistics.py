"""Intervals hold what they say, and the Fréchet distance is the formula."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from stillmotion.trainer.measures.statistics import (
    DRAWS,
    bootstrap_difference,
    bootstrap_mean,
    drawn_means,
    frechet_distance,
)


def named(values):
    return {str(number): float(value) for number, value in enumerate(values)}


def test_the_interval_of_a_mean_is_that_of_theory_for_many_clips():
    values = np.random.default_rng(0).exponential(size=400)
    found = bootstrap_mean(values)
    error = 1.96 * values.std(ddof=1) / 20
    assert found.mean == pytest.approx(values.mean()) and found.clips == 400
    assert (found.low, found.high) == pytest.approx((found.mean - error, found.mean + error), abs=0.2 * error)
    assert drawn_means(values, 0).shape == (DRAWS,) and bootstrap_mean(values) == found


def test_the_interval_holds_the_truth_in_nineteen_of_twenty_sets():
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        found = bootstrap_mean(generator.normal(3, 2, size=40))
        held += found.low <= 3 <= found.high
    assert 178 <= held <= 199


def test_numbers_that_are_not_defined_are_left_out_and_one_clip_has_no_interval():
    assert bootstrap_mean(np.array([1.0, np.nan, 1.0]))[:] == (1, 1, 1, 2)
    one, none = bootstrap_mean(np.array([2.0])), bootstrap_mean(np.array([np.nan]))
    assert one.mean == 2 and np.isnan(one.low) and one.clips == 1 and one.holds_nought
    assert np.isnan(none.mean) and none.clips == 0


def test_pairs_show_a_small_difference_that_two_samples_do_not():
    prompts = np.random.default_rng(2).normal(0, 5, size=60)
    ours = prompts + 0.3 + 0.1 * np.random.default_rng(3).normal(size=60)
    paired, is_paired = bootstrap_difference(named(ours), named(prompts))
    apart, is_not = bootstrap_difference(named(ours), {f"other {name}": v for name, v in named(prompts).items()})
    assert is_paired and not is_not and paired.mean == pytest.approx(0.3, abs=0.05)
    assert not paired.holds_nought and apart.holds_nought
    assert apart.high - apart.low > 10 * (paired.high - paired.low)


def test_the_same_set_differs_by_nothing_and_only_common_clips_are_pairs():
    values = named([1.0, 2.0, 3.0])
    assert bootstrap_difference(values, values)[0].holds_nought
    found, paired = bootstrap_difference(values, {"1": 1.5, "2": np.nan, "7": 100.0})
    assert paired and found.mean == 0.5 and found.clips == 1
    assert np.isnan(bootstrap_difference({"a": 1.0}, {"b": 1.0})[0].low)


def with_covariance(variances, mean=0.0, samples=50):
    """Features whose covariance is exactly diagonal."""
    drawn = np.random.default_rng(4).normal(size=(samples, len(variances)))
    white, _ = np.linalg.qr(drawn - drawn.mean(0))
    return white * np.sqrt(np.array(variances) * (samples - 1)) + mean


def test_the_frechet_distance_of_equal_sets_is_nought_and_of_a_shift_its_square():
    features = np.random.default_rng(5).normal(size=(300, 8))
    assert frechet_distance(features, features) < 1e-6
    assert frechet_distance(features + np.arange(8) / 4, features) == pytest.approx(np.square(np.arange(8) / 4).sum())


def test_the_frechet_distance_of_diagonal_covariances_is_the_closed_form():
    a, b = np.array([1.0, 4, 0.25]), np.array([2.25, 1, 1])
    got = frechet_distance(with_covariance(a), with_covariance(b, 1.0, samples=80))
    assert got == pytest.approx(3 + np.square(np.sqrt(a) - np.sqrt(b)).sum())


@pytest.mark.parametrize("samples, dimensions", [(300, 12), (20, 40)])
def test_the_frechet_distance_is_the_one_with_scipys_root_even_with_fewer_samples_than_dimensions(samples, dimensions):
    generator = np.random.default_rng(6)
    mixed = generator.normal(size=(dimensions, dimensions))
    a, b = generator.normal(size=(samples, dimensions)) @ mixed, generator.normal(1, 2, size=(samples + 7, dimensions))
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real.trace()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + sum(c.trace() for c in covariances) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
