"""The cache gives what computing would give, survives damage, and never freezes a window or a crop."""

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stillmotion.trainer.clips.cache import cached, caption_embedding, clip_latents, training_window, weights_hash
from stillmotion.trainer.clips.find import Source, decode

FPS, SIZE = 8, (32, 16)


class Counting:
    """A stand-in for encoding that counts how many clips or captions it was asked for."""

    def __init__(self):
        self.asked = 0

    def frames(self, vae, frames):
        self.asked += len(frames)
        return vae(F.avg_pool2d(frames, 8))

    def captions(self, base, captions):
        self.asked += len(captions)
        return torch.stack([base.text_encoder(torch.full((77, 1), float(len(caption)))) for caption in captions])


@pytest.fixture
def base():
    return SimpleNamespace(vae=torch.nn.Conv2d(3, 4, 1), text_encoder=torch.nn.Linear(1, 6))


@pytest.fixture
def source(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 40, 3), np.uint8)
    first, *others = map(Image.fromarray, noise)
    first.save(tmp_path / "clip.webp", save_all=True, append_images=others, duration=125, lossless=True)
    return Source(tmp_path / "clip.webp", "clip.webp", "a cat")


def test_a_tensor_is_computed_once_and_comes_back_equal(tmp_path):
    tensor = torch.randn(3, 5, dtype=torch.float16)
    assert torch.equal(cached(tmp_path / "a" / "x", lambda: tensor), tensor)
    again = cached(tmp_path / "a" / "x", lambda: pytest.fail("computed twice"))
    assert torch.equal(again, tensor) and again.dtype == tensor.dtype
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


@pytest.mark.parametrize("damage", ["cut off", "empty", "one bit", "another file"])
def test_a_damaged_file_is_made_again_with_a_word_in_the_log(tmp_path, caplog, damage):
    path, tensor = tmp_path / "x.safetensors", torch.randn(3, 5)
    cached(path, lambda: tensor)
    content = bytearray(path.read_bytes())
    content[-1] ^= damage == "one bit"
    path.write_bytes({"cut off": content[:-9], "empty": b"", "one bit": content, "another file": b"hello" * 99}[damage])
    with caplog.at_level(logging.WARNING, "stillmotion"):
        assert torch.equal(cached(path, lambda: tensor), tensor)
    assert "x.safetensors is damaged" in caplog.text
    assert torch.equal(cached(path, lambda: pytest.fail("still damaged")), tensor)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="The disk is full"):
        cached(tmp_path / "x", lambda: torch.zeros(3))
    assert not list(tmp_path.iterdir())


def test_latents_are_those_of_every_frame_whole_and_scaled_to_cover(tmp_path, source, base):
    latents = clip_latents(source, FPS, SIZE, base.vae, tmp_path / "cache", Counting().frames)
    frames = decode(source, 8, size=(32, 16)).frames
    assert latents.shape == (20, 4, frames.shape[1] // 8, frames.shape[2] // 8)
    whole = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(latents, base.vae(F.avg_pool2d(whole, 8)).detach())


def test_latents_are_encoded_once_whatever_the_name(tmp_path, source, base):
    encoder = Counting()
    first = clip_latents(source, FPS, SIZE, base.vae, tmp_path / "cache", encoder.frames)
    moved = Source(source.path.rename(tmp_path / "other.webp"), "other.webp", "a dog")
    assert torch.equal(clip_latents(moved, FPS, SIZE, base.vae, tmp_path / "cache", encoder.frames), first)
    assert torch.equal(
        clip_latents(moved, FPS, SIZE, base.vae, tmp_path / "cache", encoder.frames, weights_hash(base.vae)), first
    )
    assert encoder.asked == 20


def bigger(fps, size, source, base):
    return fps, (48, 24), source, base


def slower(fps, size, source, base):
    return 4, size, source, base


def another_vae(fps, size, source, base):
    base.vae.weight.data[0, 0, 0, 0] += 1e-6
    return fps, size, source, base


def half_precision(fps, size, source, base):
    return fps, size, source, SimpleNamespace(vae=torch.nn.Conv2d(3, 4, 1).bfloat16())


def other_bytes(fps, size, source, base):
    image = Image.open(source.path)
    frames = [frame.copy() for frame in map(lambda n: image.seek(n) or image, range(19))]
    frames[0].save(source.path, save_all=True, append_images=frames[1:], duration=125, lossless=True)
    return fps, size, source, base


@pytest.mark.parametrize("change", [bigger, slower, another_vae, half_precision, other_bytes])
def test_what_changes_the_latents_changes_the_file(tmp_path, source, base, change):
    encoder = Counting()
    clip_latents(source, FPS, SIZE, base.vae, tmp_path / "cache", encoder.frames)
    asked = encoder.asked
    fps, size, source, base = change(FPS, SIZE, source, base)
    clip_latents(source, fps, size, base.vae, tmp_path / "cache", encoder.frames)
    assert encoder.asked > asked
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_embeddings_are_kept_by_caption_and_encoder(tmp_path, base):
    encoder = Counting()
    for caption in ("a cat", "a horse", "a cat"):
        assert caption_embedding(caption, base, tmp_path, encoder.captions).shape == (77, 6)
    assert encoder.asked == 2
    base.text_encoder.bias.data += 1
    caption_embedding("a cat", base, tmp_path, encoder.captions)
    assert encoder.asked == 3


def coordinates(frames, height, width):
    """Latents that say where they come from: channels are frame, row, column, 0."""
    grid = torch.meshgrid(*(torch.arange(side) for side in (frames, height, width)), indexing="ij")
    return torch.stack([*grid, torch.zeros_like(grid[0])], 1)


def window(seed, crop, frames=4, cells=(5, 3)):
    cut = training_window(coordinates(7, 5, 8), frames, cells, torch.Generator().manual_seed(seed), crop)
    return cut, tuple(cut[0, :3, 0, 0].tolist())


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_window_is_one_block_that_the_generator_alone_decides(crop):
    for seed in range(20):
        cut, start = window(seed, crop)
        assert torch.equal(cut, window(seed, crop)[0])
        assert torch.equal(cut[:, :3] - torch.tensor(start)[:, None, None], coordinates(4, 3, 5)[:, :3])


def test_every_start_and_place_comes_equally_often():
    starts = torch.tensor([window(seed, "random")[1] for seed in range(1200)])
    for column, choices in zip(starts.T, (4, 3, 4)):
        counts = torch.bincount(column, minlength=choices)
        assert len(counts) == choices
        assert (counts - 1200 / choices).abs().max() < 4 * (1200 / choices) ** 0.5


def test_the_centre_is_the_centre_and_starts_at_the_same_time_as_a_random_crop():
    for seed in range(20):
        centre, free = window(seed, "center")[1], window(seed, "random")[1]
        assert centre[1:] == (1, 1)
        assert centre[0] == free[0]


@pytest.mark.parametrize("frames, cells", [(8, (5, 3)), (4, (9, 3)), (4, (5, 6))])
def test_a_window_larger_than_the_clip_is_refused(frames, cells):
    with pytest.raises(ValueError, match="in latents of 7 of 8x5"):
        window(0, "center", frames, cells)
