"""Flow and warping errors of motions that are known."""

import cv2
import numpy as np
import pytest
from stillmotion.samplers.flow import (
    camera_motion,
    followed,
    lengths,
    mean_motion,
    optical_flow,
    step_between,
    view,
    warped,
)
from stillmotion.samplers.homography import aligned, homography_error

SIZE = 160, 256


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip((smooth - 128) * 6 + 128, 0, 255).astype(np.uint8)


def shifted(x, y=0, frames=2, size=SIZE):
    """A texture that goes to the left by x and up by y pixels from frame to frame."""
    height, width = size
    whole = texture(height + abs(y) * frames, width + abs(x) * frames)
    return [whole[y * k : y * k + height, x * k : x * k + width] for k in range(frames)]


@pytest.mark.parametrize("x, y", [(3, 0), (0, 2), (5, 4)])
def test_the_flow_of_a_shift_is_the_shift(x, y):
    before, after = map(view, shifted(x, y))
    flow = optical_flow(before.grey, after.grey)[16:-16, 16:-16]
    assert np.abs(flow - (-x, -y)).mean() < 0.1
    assert mean_motion(before, after) == pytest.approx(100 * np.hypot(x, y) / 256, rel=0.1)


def test_a_picture_warped_by_the_true_flow_of_a_whole_number_of_pixels_is_the_other_one_where_it_comes_from_within():
    before, after = shifted(3, 2)
    got, inside = warped(after, np.broadcast_to(np.float32([-3, -2]), (*SIZE, 2)))
    assert np.array_equal(got[2:, 3:], before[2:, 3:])
    assert inside[2:, 3:].all() and not inside[:2].any() and not inside[:, :3].any()


def test_the_warping_error_of_a_shift_is_nought_and_that_of_the_still_difference_is_not():
    before, after = shifted(3, 2)
    step = step_between(view(before), view(after))
    difference = np.square((after.astype(float) - before) / 255).mean()
    assert step.warping_error < 1e-3 * difference and difference > 1e-3
    assert step.followed > 0.95 and step.own_motion < 0.05 * step.motion


def test_half_the_size_has_the_same_motion_and_thin_frames_are_measured_as_they_are():
    before, after = shifted(6, 4, size=(320, 512))
    small = [cv2.resize(frame, (256, 160), interpolation=cv2.INTER_AREA) for frame in (before, after)]
    assert mean_motion(*map(view, small)) == pytest.approx(mean_motion(view(before), view(after)), rel=0.05)
    down = np.full((16, 512, 2), (0, 1), np.float32)  # of a frame that is 4 pixels high and was stretched to 16
    assert lengths(down, (512, 4)) == pytest.approx(100 * 0.25 / 512)


def test_pixels_that_another_thing_hides_are_not_followed():
    forward, backward = (np.zeros((64, 64, 2), np.float32) for _ in range(2))
    forward[20:40, 20:40] = 10, 0  # goes behind what stands still
    seen = followed(forward, backward)
    assert not seen[20:40, 20:40].any() and seen[:20].all() and seen[40:].all()
    backward[20:40, 30:50] = -10, 0
    assert followed(forward, backward)[20:40, 20:40].all()


@pytest.mark.parametrize("affine", [((4, -2), (0, 0), (0, 0)), ((1, 1), (6, 0), (0, 6)), ((0, 0), (0, 5), (-5, 0))])
def test_the_cameras_motion_is_that_of_most_of_the_frame(affine):
    y, x = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 128), indexing="ij")
    flow = (np.stack([np.ones_like(x), x, y], -1) @ np.array(affine, float)).astype(np.float32)
    crossed = flow.copy()
    crossed[30:60, 40:70] += 12, -7
    got = camera_motion(crossed, np.ones((96, 128)), rounds=20)
    assert np.abs(got - flow).max() < 0.3
    assert np.abs(camera_motion(flow, np.ones((96, 128))) - flow).max() < 1e-4


def test_noise_cannot_be_followed():
    frames = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    assert step_between(*map(view, frames)).followed < 0.2


def test_a_homography_lays_a_shift_over_the_next_frame_but_for_the_border():
    before, after = shifted(5, 3)
    came = aligned(before, after)
    assert (
        np.square(came.astype(float) - after)[8:-8, 8:-8].mean() < 0.01 * np.square(after.astype(float) - before).mean()
    )
    border = homography_error([before, after])
    expected = np.square(came.astype(float) - after).sum() / (SIZE[0] * SIZE[1])
    assert border == pytest.approx(expected, rel=1e-5) and border > 100, "the black border counts"


def test_a_homography_error_is_of_eight_frames_and_of_steps_that_have_points():
    frames = shifted(2, 1, frames=12)
    assert homography_error(frames) == homography_error(frames[:8]) != homography_error(frames[:7])
    flat = np.zeros((*SIZE, 3), np.uint8)
    assert np.isnan(homography_error([flat, flat])) and np.isnan(homography_error(frames[:1]))
    assert homography_error([frames[0], frames[0]]) == 0
