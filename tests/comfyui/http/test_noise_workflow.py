"""The workflow with two kinds of noise, from an empty queue to two videos, in a real ComfyUI over HTTP."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image, ImageSequence
from stillmotion.networks.config import CrossFrames, InflationConfig, Mapping, Queries, Recurrence
from torchvision.transforms.functional import pil_to_tensor

WORKFLOW = Path(__file__).resolve().parents[3] / "workflows/noise_strategies.json"
FEW_SHOT = InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(4))
MAPPED = InflationConfig(frame_attention=CrossFrames(), mapping=Mapping())
FRAMES = 4


@pytest.fixture(scope="module", autouse=True)
def files(motion):
    motion("models/stillmotion/guitar.safetensors", FEW_SHOT)
    motion("models/stillmotion/mapped.safetensors", MAPPED)


@pytest.fixture
def prompt(server):
    """The shipped workflow in API format, small enough for a test."""
    prompt = server.to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    small = {"EmptyLatentImage": {"batch_size": FRAMES}, "BasicScheduler": {"steps": 3}}
    for node in prompt.values():
        node["inputs"] |= small.get(node["class_type"], {})
    return prompt


def with_value(prompt, name, value):
    """The inputs of the one node that has this value."""
    (inputs,) = [node["inputs"] for node in prompt.values() if node["inputs"].get(name) == value]
    return inputs


def video(server, prefix):
    (path,) = (server.folder / "output").glob(f"{prefix}_*.webp")
    with Image.open(path) as file:
        return torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]) / 255


def difference_of_neighbours(frames):
    return (frames[1:] - frames[:-1]).abs().mean()


def test_the_shipped_workflow_makes_a_video_from_each_kind_of_noise(server, prompt):
    result = server.run(prompt)
    assert not result.error, result.error
    own, following = video(server, "stillmotion_iid"), video(server, "stillmotion_progressive")
    assert own.shape == following.shape == (FRAMES, 3, 64, 64)
    assert (own - following).abs().mean() > 4 / 255
    assert difference_of_neighbours(following) < 0.9 * difference_of_neighbours(own)


def branch(prompt, strategy):
    """The graph that ends in the latents of one strategy, with the inputs of its noise node and of its sampler."""
    (source,) = [id for id, node in prompt.items() if node["inputs"].get("strategy") == strategy]
    (sampler,) = [id for id, node in prompt.items() if node["inputs"].get("noise") == [source, 0]]
    kept = {id: node for id, node in prompt.items() if node["class_type"] not in ("SaveAnimatedWEBP", "VAEDecode")}
    kept["100"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "noise"}}
    return kept, prompt[source]["inputs"], prompt[sampler]["inputs"]


def latents(server, graph):
    result = server.run(graph)
    assert not result.error and "SamplerCustomAdvanced" in result.ran, result.error
    return safetensors.torch.load_file(result.files["SaveLatent"][0])["latent_tensor"]


def test_iid_samples_what_random_noise_samples(server, prompt):
    with_value(prompt, "scheduler", "ddim_uniform")["steps"] = 2  # so that the host's cache does not answer
    graph, source, sampler = branch(prompt, "iid")
    iid = latents(server, graph)
    graph["101"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": source["seed"]}}
    sampler["noise"] = ["101", 0]
    assert torch.equal(iid, latents(server, graph))


def test_older_graphs_hold_a_boolean_for_mapping_and_run_as_they_did(server, prompt):
    graph, source, _ = branch(prompt, "iid")
    with_value(prompt, "motion_file", "guitar.safetensors")["motion_file"] = "mapped.safetensors"
    sampled = {}
    for mapping in (True, "on", "from file", False, "off"):
        source["mapping"] = mapping
        sampled[mapping] = latents(server, graph)
    assert torch.equal(sampled[True], sampled["on"]) and torch.equal(sampled["from file"], sampled["on"])
    assert torch.equal(sampled[False], sampled["off"]) and not torch.equal(sampled["off"], sampled["on"])


def test_the_workflow_as_older_versions_shipped_it_still_runs(server):
    older = json.loads(WORKFLOW.read_text(encoding="utf-8").replace('"preserved", "from file"]', '"preserved", false]'))
    graph, source, _ = branch(server.to_api(older), "progressive")
    assert source["mapping"] is False
    with_value(graph, "scheduler", "ddim_uniform")["steps"] = 1
    assert latents(server, graph).shape[0] == 16


def test_a_mapping_that_is_no_option_is_refused_before_anything_runs(server, prompt):
    graph, source, _ = branch(prompt, "iid")
    source["mapping"] = "sometimes"
    result = server.run(graph)
    assert "'sometimes' is none of from file, on, off" in result.error and not result.ran


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"mapping": True}, "no motion file of this model has a mapping network"),
        ({"strategy": "shared", "share": 1.5}, "The share is 1.5; for shared noise it must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_by_the_noise_node(server, prompt, changes, error):
    with_value(prompt, "strategy", "progressive").update(changes)
    result = server.run(prompt)
    assert result.error.startswith("StillmotionMappingNetworkNoise") and error in result.error
