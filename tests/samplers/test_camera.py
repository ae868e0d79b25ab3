"""Clips that a camera makes of a still: what they show, and that they never show a border."""

import math
from itertools import pairwise

import pytest
import torch
from stillmotion.samplers.camera import MOTIONS, area_of, camera_way, corners, moving_crop

SIZE, FRAMES = (48, 32), 5


def ramps(width=300, height=200):
    """A picture whose first two colours say where a pixel is: x and y, in 0 to 1 of the larger side."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, 0 * x + 0.5]) / torch.tensor([300.0, 300.0, 1.0]).view(3, 1, 1)


def middles(clip):
    """Where the middle of each frame comes from, in pixels of the picture."""
    h, w = clip.shape[-2:]
    around = clip[:, :2, h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1]
    return 300 * around.mean((2, 3))


def steps(clip):
    """How far a pixel is from the next one, along a row: its x and y in pixels of the picture."""
    return 300 * (clip[:, :2, 14:18, 34] - clip[:, :2, 14:18, 14]).mean(2) / 20


@pytest.mark.parametrize("reach", [0.2, 1.0])
@pytest.mark.parametrize("motion", MOTIONS)
def test_every_crop_lies_in_the_area_and_touches_its_sides(motion, reach):
    way = camera_way(motion, FRAMES, SIZE, reach)
    found = corners(way.places).flatten(0, 1)
    torch.testing.assert_close(found.amin(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.amax(0), torch.tensor(way.extent, dtype=torch.float64))


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", [(300, 200), (90, 200), (200, 20)])
def test_no_border_is_ever_seen(motion, shape):
    """Of a white picture every pixel is white, whatever its shape."""
    clip = moving_crop(torch.ones(3, shape[1], shape[0]), motion, FRAMES, SIZE, 0.7)
    assert clip.shape == (FRAMES, 3, SIZE[1], SIZE[0]) and clip.min() > 0.999


def test_a_zoom_is_by_the_same_factor_from_frame_to_frame():
    scale = steps(moving_crop(ramps(), "zoom-in", FRAMES, SIZE, 1.0))[:, 0]
    for before, after in pairwise(scale.tolist()):
        assert before / after == pytest.approx(2 ** (1 / (FRAMES - 1)), rel=0.01)
    assert scale[0] == pytest.approx(300 / 48, rel=0.01)


@pytest.mark.parametrize(
    "motion, axis, sign", [("pan-left", 0, -1), ("pan-right", 0, 1), ("tilt-up", 1, -1), ("tilt-down", 1, 1)]
)
def test_pan_and_tilt_go_evenly_and_as_far_as_they_are_told(motion, axis, sign):
    clip = moving_crop(ramps(), motion, FRAMES, SIZE, 0.5)
    moved = middles(clip).diff(dim=0)
    across = steps(clip)[0, 0].item()  # pixels of the picture in one of the clip
    expected = sign * 0.5 * SIZE[axis] * across / (FRAMES - 1)
    torch.testing.assert_close(moved[:, axis], torch.full((FRAMES - 1,), expected), rtol=0.02, atol=0.02)
    torch.testing.assert_close(moved[:, 1 - axis], torch.zeros(FRAMES - 1), rtol=0, atol=0.1)


@pytest.mark.parametrize("motion, sign", [("roll-cw", 1), ("roll-ccw", -1)])
def test_a_roll_turns_by_the_same_angle_around_the_middle(motion, sign):
    clip = moving_crop(ramps(), motion, FRAMES, SIZE, 0.5)
    x, y = steps(clip).unbind(1)
    turned = torch.atan2(y, x).diff()
    torch.testing.assert_close(turned, torch.full_like(turned, sign * math.pi / 4 / (FRAMES - 1)), rtol=0.02, atol=0)
    assert (middles(clip) - torch.tensor([150.0, 100.0])).abs().max() < 1.5


@pytest.mark.parametrize("there, back", [("zoom-in", "zoom-out"), ("pan-left", "pan-right"), ("roll-cw", "roll-ccw")])
def test_the_other_way_is_the_clip_backwards(there, back):
    picture = torch.rand(3, 40, 70)
    first, second = (moving_crop(picture, motion, FRAMES, SIZE, 0.4) for motion in (there, back))
    torch.testing.assert_close(first, second.flip(0), rtol=0, atol=1e-5)


def test_fine_texture_far_away_is_grey_and_does_not_flicker():
    fine = (torch.arange(2000) % 2).float().expand(3, 1400, 2000)
    assert (moving_crop(fine, "pan-left", 4, SIZE, 0.5) - 0.5).abs().max() < 0.02


def test_it_says_how_much_a_small_picture_is_enlarged():
    way = camera_way("zoom-in", FRAMES, SIZE, 0.5)
    assert area_of(torch.rand(3, 48, 72), way)[1] == pytest.approx(1.0)
    assert area_of(torch.rand(3, 16, 24), way)[1] == pytest.approx(3.0)
