"""No clip with a fault passes for a sound one, whatever single number it has the best of."""

import math
from dataclasses import replace

import numpy as np
import pytest
from stillmotion.samplers.measures import measure, moves_of_itself, remarks
from stillmotion.trainer.toy.faults import FAULTS, moving_clip
from torch import Generator

SAID = {
    "frozen": "still",
    "panned still": "panned still",
    "shuffled": "disorder",
    "flickering": "flicker",
    "cut": "jump",
    "stuttering": "stutter",
    "noise": "noise",
}


@pytest.fixture(scope="module")
def kinds():
    generator = Generator().manual_seed(0)
    clip = moving_clip(generator)
    return {"moving": measure(clip)} | {name: measure(fault(clip, generator)) for name, fault in FAULTS.items()}


def test_a_moving_clip_is_sound(kinds):
    assert remarks(kinds["moving"]) == {} and moves_of_itself(kinds["moving"])


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(kinds, fault):
    assert next(iter(remarks(kinds[fault]))) == SAID[fault]


def test_by_smoothness_alone_a_frozen_and_a_panned_still_would_win(kinds):
    errors = {name: numbers.warping_error for name, numbers in kinds.items()}
    assert sorted(errors, key=errors.get)[:2] == ["frozen", "panned still"]
    assert not moves_of_itself(kinds["frozen"]) and not moves_of_itself(kinds["panned still"])


def test_by_motion_alone_a_panned_still_and_noise_would_win(kinds):
    motions = {name: numbers.motion for name, numbers in kinds.items()}
    assert set(sorted(motions, key=motions.get)[-2:]) == {"panned still", "noise"}
    assert kinds["panned still"].own_motion < 0.02 * kinds["moving"].own_motion * 2


def test_of_what_moves_the_warping_error_puts_the_sound_clip_before_each_that_jumps_flickers_or_is_shuffled(kinds):
    for fault in ("shuffled", "flickering", "cut", "noise"):
        assert kinds[fault].warping_error > 2 * kinds["moving"].warping_error


def test_a_frozen_clip_has_numbers_and_no_ratios(kinds):
    frozen = kinds["frozen"]
    assert (frozen.motion, frozen.warping_error, frozen.flicker) == (0, 0, 0) and frozen.followed == 1
    assert all(math.isnan(ratio) for ratio in (frozen.seam, frozen.loop, frozen.order))


def test_how_fast_frames_are_shown_decides_what_is_still(kinds):
    slow = replace(kinds["moving"], motion=0.04, own_motion=0.04)
    assert remarks(slow, 8) == {"still": "hardly moves"} and remarks(slow, 24) == {}


def test_frames_come_one_by_one_and_a_single_one_moves_by_nothing():
    clip = moving_clip(Generator().manual_seed(1), frames=12)
    assert measure(frame for frame in clip) == measure(clip)
    one = measure(clip[:1])
    assert (one.frames, one.motion, one.differences) == (1, 0, ()) and "still" in remarks(one)
    with pytest.raises(ValueError, match="no frames"):
        measure(iter([]))


def test_the_curve_is_that_of_the_frames_themselves_and_jumps_are_counted_from_one():
    clip = moving_clip(Generator().manual_seed(2), frames=8)
    clip[5:] = 255 - clip[5:]
    numbers = measure(clip)
    expected = np.square(np.diff(clip.astype(float) / 255, axis=0)).mean((1, 2, 3))
    np.testing.assert_allclose(numbers.differences, expected, rtol=1e-4)
    assert remarks(numbers)["jump"] == "jumps after frame 5"
