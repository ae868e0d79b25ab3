"""The workflow for space-time motion files: from an empty queue to a video, over HTTP."""

import itertools
import json
from pathlib import Path

import av
import pytest
import safetensors.torch
import torch
from stillmotion.networks.presets import PRESETS
from torchvision.transforms.functional import pil_to_tensor

WORKFLOW = Path(__file__).resolve().parents[3] / "workflows/space_time.json"
LOADER, FRAMES = "StillmotionSTUNetLoader", 9


@pytest.fixture(scope="module", autouse=True)
def files(motion, structure):
    for name, preset in {"space_time": "lumiere-harivo", "plain": "lumiere"}.items():
        motion(f"models/stillmotion/{name}.safetensors", PRESETS[preset](structure, 32))


@pytest.fixture
def space_time(graph):
    """The shipped workflow, small enough for a test, with changes of its loader."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    return lambda **loader: graph(workflow, frames=FRAMES, steps=2).set(LOADER, **loader)


def latents(server, asked):
    result = server.run(asked.prompt)
    assert not result.error and "KSampler" in result.ran, result.error
    return safetensors.torch.load_file(result.files["SaveLatent"][0])["latent_tensor"]


def test_the_shipped_workflow_makes_a_video(server, space_time):
    result = server.run(space_time().prompt)
    assert not result.error, result.error
    with av.open(str(result.files["SaveVideo"][0])) as file:
        seen = torch.stack([pil_to_tensor(frame.to_image()) for frame in file.decode(video=0)]) / 255
    assert seen.shape == (FRAMES, 3, 64, 64) and result.files["SaveAnimatedWEBP"][0].is_file()
    assert all((a - b).abs().mean() > 4 / 255 for a, b in itertools.combinations(seen, 2))


def test_strengths_of_levels_and_frames_reach_the_sampler(server, space_time):
    def clip(**strengths):
        asked = space_time(motion_file="plain.safetensors", **strengths)
        return latents(server, asked.remove("SaveVideo", "SaveAnimatedWEBP", "CreateVideo", "VAEDecode"))

    asked = space_time()
    model = asked.inputs(LOADER)["model"]
    still = latents(server, asked.set("KSampler", model=model).remove(LOADER))
    assert torch.equal(clip(level_strengths="0"), still)
    whole, fading = clip(), clip(keyframes="0: 1.0, 8: 0.5")
    assert (whole - still).abs().mean(dim=(1, 2, 3)).min() > 0.1 and (fading - whole).abs().mean() > 0.01


@pytest.mark.parametrize(
    "given, error",
    [
        ({"level_strengths": "1, 1, 1, 1, 1"}, "level_strengths has 5 factors; this model has"),
        ({"keyframes": "first: 1"}, "keyframes has 'first: 1'; write frame: factor"),
    ],
)
def test_strengths_that_cannot_be_are_refused_by_the_loader(server, space_time, given, error):
    result = server.run(space_time(**given).prompt)
    assert result.error.startswith(LOADER) and error in result.error
