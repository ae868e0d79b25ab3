"""Which save the two curves of a run speak for, and what previews are compared with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stillmotion.samplers.likeness import motion_profile
from stillmotion.trainer.run.nearness import LOOKS, MOTION, References, look_of, nearness, recommendation, recommended

SAVES = [Path(f"saves/guitar-{step:06d}.safetensors") for step in (200, 300, 400)]


def lines(motion, looks=(0.5, 0.6, 0.7, 0.8)):
    """A log with other lines in it."""
    made = [{"step": 100 * (i + 1), MOTION: near, LOOKS: alike} for i, (near, alike) in enumerate(zip(motion, looks))]
    return [{"event": "start"}, {"step": 1, "loss": 0.1}, *made]


@pytest.mark.parametrize(
    "values, step", [((0.2, 0.9, 0.91, 0.92), 200), ((0.2, 0.4, 0.6, 0.8), 400), ((0.9, 0.5, 0.6, 0.7), 100)]
)
def test_it_is_the_first_step_after_which_the_motion_comes_no_nearer(values, step):
    assert recommended(dict(zip((100, 200, 300, 400), values))) == step


def test_the_file_of_that_step_is_named_with_both_curves():
    told = recommendation(lines((0.2, 0.9, 0.91, 0.92)), SAVES)
    assert "after step 200 (nearness 0.90, at the end 0.92)" in told
    assert "0.60 there and 0.80 at the end" in told and "guitar-000200.safetensors" in told


def test_a_save_that_is_gone_a_curve_that_rises_and_one_point_are_told_or_not():
    assert "--keep" in recommendation(lines((0.9, 0.9, 0.9, 0.9)), SAVES)
    assert "more --steps" in recommendation(lines((0.2, 0.4, 0.6, 0.8)), SAVES)
    assert recommendation(lines((0.2,)), SAVES) is None


def bars(shift, seed=0, frames=6):
    """A picture that moves to the right by `shift` pixels a frame."""
    wide = np.random.default_rng(seed).integers(0, 255, (12, 40, 3), np.uint8).repeat(6, 0).repeat(6, 1)
    return np.stack([wide[:, 60 - shift * k : 60 - shift * k + 96] for k in range(frames)])


def test_motion_and_looks_are_told_apart():
    """The same motion of another picture is near in motion alone, the same picture that goes back in looks alone."""
    torch.manual_seed(0)
    ours, other = torch.randn(2, 6, 4, 8, 8)
    references = References([motion_profile(bars(2))], look_of(ours)[None])
    same_motion, same_looks = nearness(references, other, bars(1, seed=3)), nearness(references, ours, bars(-2))
    assert same_motion[MOTION] > 0.95 and same_motion[LOOKS] < 0.5
    assert same_looks[MOTION] < -0.9 and same_looks[LOOKS] == pytest.approx(1)
