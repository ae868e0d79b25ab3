"""What is written can be read back, and motion amounts are those of known motions."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from stillmotion.trainer.clips.find import Source, decode
from stillmotion.trainer.show.pictures import contact_sheet, evenly_spaced, motion_amount, write_mp4, write_webp


def texture(height, width):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)))


def shifting(pixels, count=6, size=(128, 256)):
    """A texture that moves `pixels` to the left in each frame."""
    whole = texture(size[0], size[1] + pixels * count)
    return np.stack([whole[:, k * pixels : k * pixels + size[1]] for k in range(count)])


@pytest.mark.parametrize("pixels", [1, 2, 4])
def test_flow_is_the_distance_in_percent_of_the_longer_side(pixels):
    assert motion_amount(shifting(pixels)).flow == pytest.approx(100 * pixels / 256, rel=0.1)


def test_flow_does_not_depend_on_the_resolution():
    frames = shifting(4)
    half = np.stack([np.asarray(Image.fromarray(frame).reduce(2)) for frame in frames])
    assert motion_amount(half).flow == pytest.approx(motion_amount(frames).flow, rel=0.1)


def test_a_still_clip_and_a_single_frame_do_not_move():
    for frames in (np.repeat(texture(60, 90)[None], 5, 0), texture(60, 90)[None]):
        motion = motion_amount(frames)
        assert motion.flow < 0.01 and motion.difference == 0


def test_difference_is_in_grey_levels():
    frames = np.stack([np.full((256, 256, 3), level, np.uint8) for level in (10, 20, 0)])
    assert motion_amount(frames).difference == pytest.approx(15)


def test_tiny_frames_can_be_measured():
    assert motion_amount(shifting(1, size=(8, 16))).flow > 0


@pytest.mark.parametrize("fps", [8, 30, 7.5])
@pytest.mark.parametrize("name, write", [("a.webp", write_webp), ("a.mp4", write_mp4)])
def test_videos_read_back_with_their_frames_and_their_speed(tmp_path, name, write, fps):
    frames = shifting(3, count=12, size=(41, 63))  # odd sides
    write(frames, tmp_path / name, fps)
    clip = decode(Source(tmp_path / name, name), fps)
    assert clip.seconds == pytest.approx(12 / fps, abs=0.002)
    assert len(clip.frames) == 12
    got = clip.frames[:, :41, :63].astype(int)
    assert np.abs(got - frames).mean() < 6
    assert np.abs(got - frames).mean() < np.abs(got[1:] - frames[:-1]).mean() / 2  # in the right order


@pytest.mark.parametrize("count, expected", [(3, [0, 5, 10]), (1, [0]), (20, list(range(11)))])
def test_evenly_spaced_frames_reach_from_first_to_last(count, expected):
    assert evenly_spaced(np.arange(11), count).tolist() == expected


def test_a_contact_sheet_shows_every_row(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    moving = np.stack([np.full((30, 40, 3), colour, np.uint8) for colour in colours])
    still = np.repeat(moving[1:2], 5, 0)
    contact_sheet([("first 滑雪", moving), ("bad.mp4: empty", None), ("second", still)], tmp_path / "s.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    runs = [tuple(sheet[y, x]) for y in (64, sheet.shape[0] - 68) for x in (210, 400)]
    assert runs == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 255, 0)]
    assert sheet.shape[0] < 2 * 132 + 40


def test_an_empty_contact_sheet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        contact_sheet([], tmp_path / "s.png")
