"""A long clip on windows, twice as large: from an empty queue to two videos, over HTTP."""

import json
from pathlib import Path

import av
import pytest
import torch
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence
from torchvision.transforms.functional import pil_to_tensor

WORKFLOW = Path(__file__).resolve().parents[3] / "workflows/multidiffusion_upscale.json"
FEW_SHOT = InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(4))
WINDOWS, UPSCALE = "StillmotionTemporalWindows", "StillmotionMultiDiffusionUpscale"
FRAMES = 7


@pytest.fixture(scope="module", autouse=True)
def guitar(motion):
    motion("models/stillmotion/guitar.safetensors", FEW_SHOT)


@pytest.fixture
def graph(server):
    """Makes the shipped workflow in API format, small enough for a test, with changes by class of node."""

    def make(**changes):
        prompt = server.to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")))
        window = {"window": 4, "overlap": 2}
        small = {"EmptyLatentImage": {"batch_size": FRAMES}, "KSampler": {"steps": 2, "seed": 0}, WINDOWS: window}
        small[UPSCALE] = {"steps": 2, "seed": 0, **window}
        for node in prompt.values():
            node["inputs"] |= small.get(node["class_type"], {}) | changes.get(node["class_type"], {})
        return prompt

    return make


def videos(server, result):
    """The clip as sampled and the upscaled one of the last run, (frames, 3, height, width) from 0 to 1."""
    assert not result.error, result.error
    read = []
    for name in ("long", "long_2x"):
        path = max((server.folder / "output/video").glob(f"stillmotion_{name}_0*.mp4"))
        with av.open(str(path)) as file:
            read.append(torch.stack([pil_to_tensor(frame.to_image()) for frame in file.decode(video=0)]) / 255)
    return read


def enlarged(clip):
    return torch.nn.functional.interpolate(clip, scale_factor=2.0, mode="bicubic").clamp(0, 1)


def test_the_shipped_workflow_samples_a_long_clip_and_doubles_it(server, graph):
    result = server.run(graph())
    assert {WINDOWS, UPSCALE} <= result.ran
    small, large = videos(server, result)
    assert small.shape == (FRAMES, 3, 64, 64) and large.shape == (FRAMES, 3, 128, 128)
    assert all((a - b).abs().mean() > 4 / 255 for a, b in zip(large, large[1:]))
    assert (large - enlarged(small)).abs().mean() > 4 / 255


def test_the_windows_reach_the_sampler(server, graph):
    """One that holds the whole clip is another clip than windows of four."""
    cut = videos(server, server.run(graph()))[0]
    whole = videos(server, server.run(graph(**{WINDOWS: {"window": FRAMES}})))[0]
    assert (cut - whole).abs().mean() > 1 / 255


def test_a_cancelled_upscale_leaves_the_next_one_as_it_was(server, graph):
    """Cancelled when the upscaler has encoded the frames, which its bar counts first, and has windows before it."""
    before = videos(server, server.run(graph(KSampler={"seed": 5})))[1]
    cancelled = server.run(graph(KSampler={"seed": 5}, **{UPSCALE: {"steps": 50}}), interrupt_at=FRAMES)
    assert cancelled.interrupted and not cancelled.error and UPSCALE in cancelled.ran
    after = videos(server, server.run(graph(KSampler={"seed": 5}, **{UPSCALE: {"denoise": 0.4 - 1e-7}})))[1]
    assert torch.equal(after, before)


@pytest.mark.parametrize("node", [WINDOWS, UPSCALE])
def test_an_overlap_as_long_as_the_window_is_refused_by_its_node(server, graph, node):
    result = server.run(graph(**{node: {"overlap": 4}}))
    assert result.error.startswith(node)
    assert "The overlap is 4 frames; windows of 4 frames allow 0 to 3" in result.error
