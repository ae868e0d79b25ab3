"""Clips that a camera makes of pictures and of clips: found, decoded, and kept in the cache."""

import clip_sets
import numpy as np
import pytest
import torch
from PIL import Image
from stillmotion.trainer.clips.cache import clip_latents
from stillmotion.trainer.clips.find import ClipFormat, Source, find_clips
from stillmotion.trainer.clips.frames import decode
from stillmotion.trainer.clips.inspect import inspect_clips
from stillmotion.trainer.clips.source import Camera

SIZE, CAMERA = (32, 16), Camera("pan-right", 8, 0.5)


def texture(width=120, height=60, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (height // 6, width // 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


@pytest.fixture
def pictures(tmp_path):
    """Two pictures, numbered, with words beside them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        texture(seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a texture, number {number}")
    return folder


def test_every_picture_of_a_folder_is_a_clip_of_its_own_with_its_own_words(pictures):
    found = find_clips(pictures, None, CAMERA)
    assert [(s.name.split("/")[-1], s.caption, s.camera) for s in found] == [
        (f"{n}.png", f"a texture, number {n}", CAMERA) for n in range(2)
    ]
    (report, _) = inspect_clips(found, ClipFormat(8, 8, SIZE))
    assert report.problem is None and report.count == 8 and report.motion.flow > 0.5
    assert report.window.shape == (8, 16, 32, 3)


def test_pictures_and_clips_may_lie_together_in_folders_and_tar_files(pictures, tmp_path, clip_bytes):
    (pictures / "clip.mp4").write_bytes(clip_bytes(1))
    found = find_clips(pictures, "words", CAMERA)
    assert [s.name.split("/")[-1] for s in found] == ["0.png", "1.png", "clip.mp4"]
    assert not any(report.problem for report in inspect_clips(found, ClipFormat(8, 8, SIZE)))
    still = (pictures / "0.png").read_bytes()
    files = {"a.png": still, "a.txt": "one", "b.mp4": clip_bytes(2), "b.txt": "two"}
    packed = find_clips(clip_sets.write_tar(tmp_path / "set.tar", files), None, CAMERA)
    assert [s.caption for s in packed] == ["one", "two"]
    reports = inspect_clips(packed, ClipFormat(8, 8, SIZE))
    assert [(r.problem, r.count) for r in reports] == [(None, 8)] * 2
    still = decode(Source(pictures / "0.png", "0", camera=CAMERA), 8, size=SIZE)
    assert np.array_equal(reports[0].window, still.frames)


def test_the_frames_of_a_clip_go_on_while_the_camera_moves(tmp_path, clip_bytes):
    """The brightness of the drawn square's clip is that of its frames, and what is shown of them moves."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip_bytes(1))
    plain, seen = (decode(Source(path, "clip", camera=camera), 8, size=SIZE).frames for camera in (None, CAMERA))
    assert len(seen) == 8 and seen.shape[1:] == (16, 32, 3)
    assert not np.array_equal(seen, plain[:8])


def test_a_clip_with_too_few_frames_is_named_with_its_length(tmp_path, clip_bytes):
    (tmp_path / "short").mkdir()
    (tmp_path / "short/a.mp4").write_bytes(clip_bytes(1, frames=5))
    (report,) = inspect_clips(find_clips(tmp_path / "short", "words", CAMERA), ClipFormat(8, 8, SIZE))
    assert "too short" in report.problem and "5 frames at 8 fps; 8 frames" in report.problem


def test_a_small_picture_is_enlarged_and_told_so(tmp_path):
    texture(24, 12).save(tmp_path / "small.png")
    (report,) = inspect_clips(find_clips(tmp_path, "words", CAMERA), ClipFormat(8, 8, SIZE))
    assert report.problem is None and report.note == "enlarged 2.0 times"


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (report,) = inspect_clips(find_clips(tmp_path, "words", CAMERA), ClipFormat(8, 8, SIZE))
    assert "bad.png cannot be read as a picture" in report.problem


def test_the_cache_knows_the_motion_and_its_reach(pictures, tmp_path):
    base = clip_sets.Counting()

    def latents(camera):
        source = Source(pictures / "0.png", "0", camera=camera)
        return clip_latents(source, 8, SIZE, base.vae, tmp_path / "cache", base.encode_frames)

    first = latents(CAMERA)
    assert torch.equal(latents(CAMERA), first) and base.frames == 8
    for other in (Camera("pan-left", 8, 0.5), Camera("pan-right", 8, 0.6), Camera("pan-right", 6, 0.5)):
        assert not torch.equal(latents(other)[:6], first[:6])
    assert base.frames == 30
