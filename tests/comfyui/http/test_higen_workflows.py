"""The workflows with a still, with dials and with a reference, from an empty queue to a video, over HTTP."""

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, ImageSequence
from stillmotion.networks.config import Appearance, CrossFrames, InflationConfig, Motion, Prior
from torchvision.transforms.functional import pil_to_tensor

WORKFLOWS = Path(__file__).resolve().parents[3] / "workflows"
PRIOR, GUIDANCE = "StillmotionSpatialPrior", "StillmotionMotionAppearanceGuidance"
FRAMES, UNLIKE = 4, 4 / 255


@pytest.fixture(scope="module", autouse=True)
def files(models, motion):
    """Motion files as `decouple` and `convert` name their parts, and a clip to take the motion from."""
    frames = CrossFrames()
    ours = InflationConfig(frame_attention=frames, prior=Prior(), motion=Motion(), appearance=Appearance(16))
    motion("models/stillmotion/decouple.safetensors", ours)
    motion("models/stillmotion/plain.safetensors", InflationConfig(frame_attention=frames))
    release = InflationConfig(
        frame_attention=frames,
        prior=Prior("zero"),
        motion=Motion(order="sin_then_interp", absent="zero"),
        appearance=Appearance(32, absent="zero"),
    )
    motion("models/stillmotion/higen_motion.safetensors", release)
    write_video(models / "input/reference.mp4", torch.rand(5, 64, 64, 3))


def write_video(path, frames):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in (frames * 255).byte().numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode())


@pytest.fixture
def prompt(server):
    """A shipped workflow in API format, small enough for a test."""

    def make(name):
        prompt = server.to_api(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
        for node in prompt.values():
            inputs, kind = node["inputs"], node["class_type"]
            if kind == "EmptyLatentImage":
                inputs.update(width=64, height=64, batch_size=min(FRAMES, inputs["batch_size"]))
            if kind in ("KSampler", "BasicScheduler"):
                inputs["steps"] = 2
        return prompt

    return make


def the(prompt, kind):
    """Inputs of the one node of this class."""
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    return inputs


def frames_of(result):
    """Frames of the WebP that this run saved, (frames, 3, height, width)."""
    assert not result.error and "SaveAnimatedWEBP" in result.ran, result.error
    with Image.open(result.files["SaveAnimatedWEBP"][0]) as file:
        return torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]) / 255


def test_a_clip_is_made_of_the_still(server, prompt):
    asked = prompt("spatial_prior")
    given = frames_of(server.run(asked))
    assert given.shape == (FRAMES, 3, 64, 64)
    the(asked, PRIOR)["strength"] = 0.0
    free = frames_of(server.run(asked))
    assert ((given - free).abs().mean((1, 2, 3)) > UNLIKE).all()


def test_a_still_of_another_size_is_refused_by_the_sampler_or_resized(server, prompt):
    asked = prompt("spatial_prior")
    (still,) = [node["inputs"] for node in asked.values() if node["inputs"].get("batch_size") == 1]
    still["width"] = 128
    assert "has 128 x 64 pixels and the clip 64 x 64" in server.run(asked).error
    the(asked, PRIOR)["size"] = "resize the still"
    assert len(frames_of(server.run(asked))) == FRAMES


def test_a_file_without_a_stem_is_refused_by_the_node(server, prompt):
    asked = prompt("spatial_prior")
    the(asked, "StillmotionSTUNetLoader")["motion_file"] = "plain.safetensors"
    error = server.run(asked).error
    assert error.startswith(PRIOR) and "plain.safetensors has frame_attention" in error


def test_three_amounts_of_motion_are_side_by_side(server, prompt):
    seen = frames_of(server.run(prompt("motion_factor")))
    assert seen.shape == (FRAMES, 3, 64, 200)
    clips = [seen[..., start : start + 64] for start in (0, 68, 136)]
    assert all((a - b).abs().mean() > UNLIKE for a, b in zip(clips, clips[1:]))


def test_the_motion_of_a_video_is_measured_and_asked_for(server, prompt):
    asked = prompt("reference_motion")
    measured = frames_of(server.run(asked))
    the(asked, GUIDANCE)["motion_scale"] = 0.2
    calmer = server.run(asked)
    assert (frames_of(calmer) - measured).abs().mean() > 1 / 255
    (plot,) = calmer.files[GUIDANCE]
    assert Image.open(server.folder / "temp" / plot.name).size == (640, 640)


def test_both_passes_of_the_release(server, prompt):
    """The toy stands for the converted U-Net and for the checkpoint that text encoder and VAE are of."""
    asked = prompt("higen_release")
    checkpoint = next(id for id, node in asked.items() if node["class_type"] == "CheckpointLoaderSimple")
    the(asked, "StillmotionSTUNetLoader")["model"] = [checkpoint, 0]
    the(asked, "CheckpointLoaderSimple")["ckpt_name"] = "toy.safetensors"
    asked = {id: node for id, node in asked.items() if node["class_type"] != "UNETLoader"}
    settings = [node["inputs"] for node in asked.values() if node["class_type"] in ("KSampler", "CFGGuider")]
    assert [inputs["cfg"] for inputs in settings] == [12.0, 12.0]
    offset = the(asked, "StillmotionMappingNetworkNoise")
    assert offset["offset"] == 0.1
    with_offset = frames_of(server.run(asked))
    offset["offset"] = 0.0
    assert with_offset.shape == (FRAMES, 3, 64, 64)
    assert (frames_of(server.run(asked)) - with_offset).abs().mean() > 1 / 255
