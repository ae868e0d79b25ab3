"""What the dials are asked for, in numbers for a clip of so many frames."""

import pytest
import torch
from stillmotion.samplers.guidance import DrawnLook, DrawnMotion, EvenLook, MeasuredLook, MeasuredMotion


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_number_is_the_same_in_every_frame(frames):
    assert DrawnMotion(((0, 500.0),)).for_frames(frames).tolist() == [500] * frames


def test_motion_is_linear_between_keyframes_and_constant_outside():
    asked = DrawnMotion(((1, 300.0), (3, 600.0)))
    assert asked.for_frames(6).tolist() == [300, 300, 450, 600, 600, 600]
    assert asked.for_frames(2).tolist() == [300, 300]


def test_measured_motion_is_a_curve_over_transitions_times_a_scale():
    asked = MeasuredMotion(torch.tensor([100.0, 200.0, 300.0]), 0.5)
    assert asked.for_frames(4).tolist() == [50, 100, 150]
    assert asked.for_frames(6).tolist() == [50, 75, 100, 125, 150]
    assert asked.for_frames(1).tolist() == [50]


@pytest.mark.parametrize("frames", [2, 5, 32])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_an_even_look_is_equation_4(factor, frames):
    similarity = EvenLook(factor).for_frames(frames)
    for i in range(frames):
        for j in range(frames):
            expected = 1 - factor * abs(i - j) / (frames - 1)
            assert similarity[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_a_drawn_look_has_its_places_on_the_way():
    similarity = DrawnLook(((0, 0.0), (2, 1.0), (3, 0.5))).for_frames(4)
    assert similarity[0].tolist() == [1, 0.5, 0, 0.5] and similarity[1, 3].item() == 1


def test_an_even_look_and_two_keyframes_are_the_same():
    drawn = DrawnLook(((0, 0.0), (6, 0.8))).for_frames(7)
    torch.testing.assert_close(drawn, EvenLook(0.8).for_frames(7))


def test_a_measured_look_is_that_clips_with_its_distances_scaled():
    measured = EvenLook(0.6).for_frames(5)
    assert torch.equal(MeasuredLook(measured).for_frames(5), measured)
    torch.testing.assert_close(MeasuredLook(measured, 0.5).for_frames(9), EvenLook(0.3).for_frames(9))
    strong = MeasuredLook(measured, 10.0).for_frames(5)
    assert strong.min() == -1 and torch.equal(strong.diagonal(), torch.ones(5))


def test_one_frame_is_like_itself():
    for asked in (EvenLook(0.7), DrawnLook(((0, 0.2),)), MeasuredLook(torch.eye(3))):
        assert asked.for_frames(1).tolist() == [[1]]
