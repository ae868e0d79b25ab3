"""The workflows around known pixels, from an empty queue to a clip that keeps them, over HTTP."""

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, ImageSequence
from stillmotion.networks.config import InflationConfig, Temporal
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

WORKFLOWS = Path(__file__).resolve().parents[3] / "workflows"
NODE = "StillmotionVideoInpaint"
FRAMES, SIZE = 4, 64
NEAR = 6 / 255  # what the file's compression changes


@pytest.fixture(scope="module", autouse=True)
def files(models, motion):
    """A motion file, two pictures of smooth colours, one with a painted half, a clip and a mask."""
    motion("models/stillmotion/mm_sd15_v3.safetensors", InflationConfig(temporal=Temporal()))
    lower_half = Image.linear_gradient("L").resize((SIZE, SIZE)).point(lambda value: 255 * (value >= 128))
    painted = ramp(0).convert("RGBA")
    painted.putalpha(lower_half.point(lambda value: 255 - value))
    for name, picture in ("example", ramp(0)), ("painted", painted), ("mask", lower_half.convert("RGB")):
        picture.save(models / f"input/{name}.png")
    with av.open(str(models / "input/clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = SIZE, SIZE, "yuv420p", 4_000_000
        for number in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_image(ramp(number))))
        file.mux(stream.encode())


def ramp(number):
    """A picture that a video codec hardly changes."""
    across = torch.linspace(0, 1, SIZE)
    return to_pil_image(torch.stack(torch.broadcast_tensors(across, across[:, None], torch.tensor(number / 8))))


@pytest.fixture
def prompt(server):
    """A shipped workflow in API format, small enough for a test."""

    def make(name, image="example.png"):
        prompt = server.to_api(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
        for node in prompt.values():
            small = {
                "KSampler": {"steps": 2},
                "EmptyLatentImage": {"width": SIZE, "height": SIZE},
                "ImageScale": {"width": SIZE, "height": SIZE},
                "LoadImage": {"image": image},
                "LoadImageMask": {"image": "mask.png"},
                NODE: {"mode.frames": FRAMES, "grow_mask_by": 0} if "mode.frames" in node["inputs"] else {},
                "StillmotionKeepKnownPixels": {"feathering": 0},
            }
            node["inputs"] |= small.get(node["class_type"], {})
        return prompt

    return make


def frames_of(result):
    """Frames of the WebP that this run saved, (frames, 3, height, width)."""
    assert not result.error and "SaveAnimatedWEBP" in result.ran, result.error
    with Image.open(result.files["SaveAnimatedWEBP"][0]) as file:
        return torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]) / 255


def given(number=0):
    return pil_to_tensor(ramp(number)) / 255


def error(a, b):
    return (a - b).abs().mean().item()


def test_the_first_frame_is_the_picture(server, prompt):
    clip = frames_of(server.run(prompt("image_to_video")))
    assert len(clip) == FRAMES and error(clip[0], given()) < NEAR
    assert all(error(frame, given()) > 2 * NEAR for frame in clip[1:])


def test_the_first_and_the_last_frame_are_given(server, prompt):
    clip = frames_of(server.run(prompt("keyframes")))
    assert all(error(clip[frame], given()) < NEAR for frame in (0, -1))
    assert error(clip[1], given()) > 2 * NEAR


def test_a_still_becomes_wide(server, prompt):
    clip = frames_of(server.run(prompt("outpaint")))
    assert clip.shape == (FRAMES, 3, SIZE, SIZE + 256)
    assert all(error(frame[:, :, 128:-128], given()) < NEAR for frame in clip)


def test_a_photo_moves_where_it_is_painted(server, prompt):
    clip = frames_of(server.run(prompt("cinemagraph", "painted.png")))
    still, moving = clip[:, :, : SIZE // 2 - 8], clip[:, :, SIZE // 2 + 8 :]
    assert all(error(frame, given()[:, : SIZE // 2 - 8]) < NEAR for frame in still)
    assert error(moving[1], moving[2]) > 4 * error(still[1], still[2])


def test_a_photo_without_paint_is_told_what_to_do(server, prompt):
    assert "has no mask, and 'cinemagraph' needs one" in server.run(prompt("cinemagraph")).error


def test_a_hole_in_a_clip_is_filled(server, prompt):
    clip = frames_of(server.run(prompt("inpaint")))
    assert len(clip) == FRAMES
    for number, frame in enumerate(clip):
        assert error(frame[:, : SIZE // 2 - 8], given(number)[:, : SIZE // 2 - 8]) < 2 * NEAR
        assert error(frame[:, SIZE // 2 + 8 :], given(number)[:, SIZE // 2 + 8 :]) > 3 * NEAR


def test_a_loop_is_another_clip(server, prompt):
    """That it closes is tested where frames depend on each other in a known way, beside the windows' other tests."""
    asked = prompt("loop")
    clip = frames_of(server.run(asked))
    next(n for n in asked.values() if n["class_type"] == "StillmotionTemporalWindows")["inputs"]["loop"] = False
    assert len(clip) == 16 and not torch.equal(clip, frames_of(server.run(asked)))


def test_a_clip_is_made_anew_as_far_as_denoise_says(server, prompt):
    asked, apart = prompt("video_to_video"), []
    for denoise in (0.1, 0.6, 1.0):
        next(n for n in asked.values() if n["class_type"] == "KSampler")["inputs"]["denoise"] = denoise
        clip = frames_of(server.run(asked))
        assert len(clip) == FRAMES
        apart.append(error(clip[0], given()))
    print(f"mean difference from the source at denoise 0.1, 0.6, 1.0: {apart}")
    assert apart[0] < apart[1]
