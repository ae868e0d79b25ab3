"""Frames come by their time stamps, upright, and a clip that cannot be used says why."""

import bisect
import struct
import wave

import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.clips.decoding import ClipError, cover
from stillmotion.trainer.clips.find import Source, decode, fit
from stillmotion.trainer.clips.frames import Frames

STEADY = {f"{rate} fps": [k / rate for k in range(3 * rate)] for rate in (25, 30)} | {
    "an odd rate, 23 fps": [k / 23 for k in range(70)],
    "slower than the target": [k / 5 for k in range(10)],
    "the target itself": [k / 8 for k in range(20)],
}
VARIABLE = {
    "a long hold": [0, 0.04, 0.08, 1.3, 1.34, 1.5, 2.0, 2.04],
    "it slows down": list(np.cumsum(np.linspace(0.02, 0.3, 20)) - 0.02),
    "a late start": [1.4 + k / 25 for k in range(50)],
}


def decoded(path, fps=8, **options):
    return decode(Source(path, path.name), fps, **options)


@pytest.mark.parametrize("file, codec", [("clip.mp4", "libx264rgb"), ("clip.mkv", "ffv1")])
@pytest.mark.parametrize("times", (STEADY | VARIABLE).values(), ids=(STEADY | VARIABLE).keys())
def test_each_frame_is_the_one_on_screen_at_its_time(tmp_path, write_video, numbers, times, file, codec):
    clip = decoded(write_video(tmp_path / file, times, codec=codec))

    wanted = [k / 8 for k in range(len(clip.frames))]
    since_first = [time - times[0] for time in times]
    assert numbers(clip.frames) == [bisect.bisect_right(since_first, time + 0.002) - 1 for time in wanted]
    assert since_first[-1] <= clip.seconds <= since_first[-1] + 0.4
    assert wanted[-1] < clip.seconds <= wanted[-1] + 1 / 8 + 0.01


@pytest.mark.parametrize("fps", [3, 8, 24, 60])
def test_two_seconds_hold_twice_as_many_frames_as_the_fps_at_any_native_rate(tmp_path, write_video, fps):
    for rate in (10, 25, 30):
        path = write_video(tmp_path / f"{rate}.mp4", [k / rate for k in range(2 * rate)], rate=rate)
        assert len(decoded(path, fps).frames) == 2 * fps
        assert decoded(path, fps).native_fps == pytest.approx(rate)


def test_start_and_frames_choose_a_part(tmp_path, write_video, numbers):
    path = write_video(tmp_path / "clip.mp4", [k / 24 for k in range(72)])
    everything = numbers(decoded(path, 8).frames)
    assert numbers(decoded(path, 8, frames=5, start=0.5).frames) == everything[4:9]


QUARTER_TURNS = {  # the display matrix of ISO 14496-12: x' = a x + c y, y' = b x + d y, both axes to the right and down
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),  # what a phone held upright writes: turn clockwise
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@pytest.mark.parametrize("clockwise", QUARTER_TURNS)
def test_a_rotated_video_is_turned_upright(tmp_path, write_video, clockwise):
    frames = np.zeros((20, 32, 64, 3), np.uint8)
    frames[:, :16, :16] = 200  # the upper left
    path = write_video(tmp_path / "phone.mp4", [k / 10 for k in range(20)], frames)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    a, b, c, d = QUARTER_TURNS[clockwise]
    struct.pack_into(">9i", data, matrix, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)

    clip = decoded(path)
    expected = np.rot90(frames[0], -clockwise // 90)
    assert clip.native_size == expected.shape[1::-1]
    assert np.abs(clip.frames.astype(int) - expected).max() < 6


@pytest.mark.parametrize("aspect, width", [(2, 128), (1, 64), (5000, 64)])  # the last is a broken header
def test_pixels_that_are_not_square_are_made_so(tmp_path, write_video, aspect, width):
    path = write_video(tmp_path / "dv.mp4", [0, 0.1, 0.2], aspect=aspect)
    assert decoded(path).frames.shape[1:3] == (48, width)


def test_a_cut_off_file_gives_what_is_there_and_says_so(tmp_path, write_video, numbers):
    frames = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "clip.avi", [k / 25 for k in range(50)], frames, codec="ffv1")
    whole = decoded(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = decoded(path)
    assert len(whole.frames) == 16 and 5 <= len(clip.frames) <= 8
    assert np.array_equal(clip.frames, whole.frames[: len(clip.frames)])
    assert clip.seconds < 1.1
    with pytest.raises(
        ClipError, match=r"too short: \d.\d\d s are \d frames at 8 fps; 16 frames \(2.00 s\) are needed"
    ):
        decoded(path, frames=16)


def test_damage_in_the_middle_ends_the_clip(tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "clip.avi", [k / 25 for k in range(50)], frames, codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    clip = decoded(path)
    assert clip.seconds < 1.2 and "damaged or cut off after" in clip.note


def test_a_title_in_another_encoding_does_no_harm(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mkv", [k / 25 for k in range(50)], title="a title of Latin-1")
    path.write_bytes(path.read_bytes().replace(b"a title of", b"caf\xe9 title"))
    assert len(decoded(path).frames) == 16


def bad_files(tmp_path, write_video):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 99)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path}/good.mp4'\n")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a" + bytes(9))
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / "cut.gif", save_all=True, append_images=others)
    cut = tmp_path / "cut.gif"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "nothing").mkdir()
    write_video(tmp_path / "one.mp4", [0])
    Image.new("RGB", (64, 48)).save(tmp_path / "still.png")
    good = write_video(tmp_path / "good.mp4", [k / 25 for k in range(50)])
    (tmp_path / "half.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("empty.mp4", "empty"),
        ("text.mp4", "not a video"),
        ("list.mp4", "not a video"),  # a playlist would open other files
        ("half.mp4", "cut off"),
        ("sound.wav", "only sound"),
        ("broken.gif", "cannot be read as a picture"),
        ("cut.gif", "cut off after 1 frames"),
        ("one.mp4", "a single picture"),
        ("still.png", "a single picture"),
        ("nothing", "without clips or pictures"),
        ("gone.mp4", "not a file"),
    ],
)
def test_what_is_no_clip_says_why(tmp_path, write_video, name, reason):
    bad_files(tmp_path, write_video)
    with pytest.raises(ClipError, match=reason):
        decoded(tmp_path / name)


def test_a_time_stamp_far_away_does_not_fill_the_memory(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mkv", [0, 0.1, 90_000], codec="ffv1")
    with pytest.raises(ClipError, match="longer than 2.913e.04 s, .* 8 fps and 64x48 pixels take 2048 MiB of memory"):
        decoded(path)


def test_latents_of_a_clip_have_a_limit_of_their_own(tmp_path, write_video):
    """Of 64 x 48 pixels a frame's latents take 768 bytes."""
    path = write_video(tmp_path / "clip.mkv", [0, 0.1, 90_000], codec="ffv1")
    with pytest.raises(ClipError, match="longer than 4.369e.04 s, of which the latents at 8 fps .* take 256 MiB"):
        list(Frames(Source(path, "clip"), 8, size=(64, 48)))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animated_picture_keeps_its_times(tmp_path, suffix):
    levels, stays = [10, 80, 160, 240], [120, 500, 40, 340]
    first, *others = (Image.new("RGB", (40, 30), (level,) * 3) for level in levels)
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=others, duration=stays, lossless=True)
    clip = decoded(tmp_path / f"a.{suffix}", fps=10)
    shown = np.repeat(levels, stays)[::100]
    assert clip.seconds == pytest.approx(1.0)
    assert np.abs(clip.frames.mean((1, 2, 3)) - shown).max() < 2


def test_a_cut_off_gif_gives_what_is_there(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    first, *others = map(Image.fromarray, noise)
    path = tmp_path / "a.gif"
    first.save(path, save_all=True, append_images=others, duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 5 <= len(decoded(path, fps=10).frames) <= 11


def test_transparency_is_white(tmp_path):
    frames = [Image.new("RGBA", (8, 8), (level, 0, 0, 0)) for level in (10, 90)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=200)
    assert decoded(tmp_path / "a.png").frames.min() == 255


def picture_folder(folder, count=12):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 24), (10 + 2 * number,) * 3).save(folder / f"frame {number}.png")
    return folder


def test_a_folder_of_pictures_is_in_natural_order_one_for_each_frame(tmp_path, numbers):
    clip = decoded(picture_folder(tmp_path / "walk"), fps=6)
    assert numbers(clip.frames) == list(range(12))
    assert clip.seconds == pytest.approx(2.0)


def test_a_damaged_picture_in_a_folder_is_named(tmp_path):
    folder = picture_folder(tmp_path / "walk")
    (folder / "frame 7.png").write_bytes((folder / "frame 7.png").read_bytes()[:50])
    with pytest.raises(ClipError, match="frame 7.png"):
        decoded(folder)


def test_frames_of_two_sizes_are_refused(tmp_path):
    folder = picture_folder(tmp_path / "walk")
    Image.new("RGB", (24, 16)).save(folder / "frame 7.png")
    with pytest.raises(ClipError, match="change size, from 16x24 to 24x16"):
        decoded(folder)


@pytest.mark.parametrize("native", [(101, 57), (57, 101), (320, 240), (33, 20), (512, 128)])
@pytest.mark.parametrize("size", [(64, 40), (40, 64)])
def test_covering_keeps_the_aspect_and_the_middle(native, size):
    x, y = np.meshgrid(*(np.linspace(-100, 100, side) * side / max(native) for side in native))
    ramp = np.stack([128 + x, 128 + y, 0 * x], -1).round().astype(np.uint8)
    covered = np.asarray(cover(Image.fromarray(ramp), size)).astype(float)
    height, width = covered.shape[:2]
    assert width >= size[0] and height >= size[1] and width % 8 == height % 8 == 0
    assert width < size[0] + 8 or height < size[1] + 8  # the smallest
    across, down = np.diff(covered[height // 2, :, 0]).mean(), np.diff(covered[:, width // 2, 1]).mean()
    assert across == pytest.approx(down, rel=0.05)  # the same scale both ways
    assert covered[..., 0].mean() == pytest.approx(128, abs=1) and covered[..., 1].mean() == pytest.approx(128, abs=1)


def test_scaling_down_averages():
    stripes = np.zeros((1, 80, 128, 3), np.uint8)
    stripes[:, :, ::2] = 200
    assert np.abs(fit(stripes, (32, 16))[0, 2:-2, 2:-2].astype(int) - 100).max() < 12


def test_a_crop_is_where_it_is_asked_for():
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 64, 3), np.uint8)
    assert np.array_equal(fit(frames, (40, 40)), frames[:, :, 12:52])
    assert np.array_equal(fit(frames, (40, 40), offset=(24, 0)), frames[:, :, 24:])
    with pytest.raises(ValueError, match="outside"):
        fit(frames, (40, 40), offset=(25, 0))


def test_a_ribbon_is_refused():
    with pytest.raises(ClipError, match="1000x10"):
        cover(Image.new("RGB", (1000, 10)), (64, 40))
