"""The workflow with and without mitigating gradients, from an empty queue to two videos, over HTTP."""

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
import safetensors.torch
import torch
from stillmotion.networks.config import CrossFrames, InflationConfig, Mapping, Queries, Recurrence, Temporal, Tokens
from stillmotion.trainer.run.workflow import write_workflow
from torchvision.transforms.functional import pil_to_tensor

WORKFLOW = Path(__file__).resolve().parents[3] / "workflows/mg_guidance.json"
FEW_SHOT = InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(4))
FRAMES = 4
SAMPLER = "StillmotionMGGuidanceSampler"


@pytest.fixture(scope="module", autouse=True)
def guitar(motion):
    motion("models/stillmotion/guitar.safetensors", FEW_SHOT)


@pytest.fixture
def prompt(server):
    """The shipped workflow in API format, small enough for a test."""
    prompt = server.to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    small = {"EmptyLatentImage": {"batch_size": FRAMES}, SAMPLER: {"steps": 4}}
    for node in prompt.values():
        node["inputs"] |= small.get(node["class_type"], {})
    return prompt


def sampler_of(prompt, alpha):
    """Id and inputs of the branch with this alpha."""
    return next((id, node["inputs"]) for id, node in prompt.items() if node["inputs"].get("alpha") == alpha)


def video(server, name):
    (path,) = (server.folder / "output/video").glob(f"stillmotion_{name}_mg_*.mp4")
    with av.open(str(path)) as file:
        return torch.stack([pil_to_tensor(frame.to_image()) for frame in file.decode(video=0)]) / 255


def only_latents(prompt, sampler):
    """The same graph, ending in the latents of one sampler."""
    videos = "SaveVideo", "CreateVideo", "VAEDecode"
    kept = {id: node for id, node in prompt.items() if node["class_type"] not in videos}
    return kept | {"100": {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "mg"}}}


def latents(server, prompt, sampler, kind=SAMPLER):
    result = server.run(only_latents(prompt, sampler))
    assert not result.error and kind in result.ran, result.error
    return safetensors.torch.load_file(result.files["SaveLatent"][0])["latent_tensor"]


def roughness(clip):
    return clip.diff(dim=0).flatten(1).norm(dim=1).sum()


def test_the_shipped_workflow_makes_a_video_with_and_one_without(server, prompt):
    without, with_mg = (sampler_of(prompt, alpha)[1] for alpha in (0.0, 40.0))
    assert {name: value for name, value in without.items() if with_mg[name] != value} == {"alpha": 0.0}
    result = server.run(prompt)
    assert not result.error, result.error
    off, on = video(server, "without"), video(server, "with")
    assert off.shape == on.shape == (FRAMES, 3, 64, 64)
    assert (off - on).abs().mean() > 1 / 255


def test_the_branch_with_it_is_the_smoother_one(server, prompt):
    samplers = [sampler_of(prompt, alpha) for alpha in (0.0, 40.0)]
    for _, inputs in samplers:
        inputs["seed"] = 4  # so that the host's cache does not answer
    inputs["alpha"] = 200.0  # the frames of a random model differ far more than those of a trained one
    off, on = (latents(server, prompt, id) for id, _ in samplers)
    assert roughness(on) < 0.95 * roughness(off)


def add(prompt, kind, **inputs):
    id = str(200 + len(prompt))
    prompt[id] = {"class_type": kind, "inputs": inputs}
    return id


def test_without_it_and_with_one_scale_it_is_ksampler(server, prompt):
    id, inputs = sampler_of(prompt, 0.0)
    inputs |= {"cfg_early": 7.5, "cfg_late": 7.5, "seed": 5}
    shared = "model positive negative latent_image seed steps sampler_name scheduler denoise".split()
    ksampler = add(prompt, "KSampler", cfg=7.5, **{name: inputs[name] for name in shared})
    assert torch.equal(latents(server, prompt, id), latents(server, prompt, ksampler, "KSampler"))


def test_the_guider_is_the_sampler_in_parts(server, prompt):
    id, inputs = sampler_of(prompt, 40.0)
    inputs["seed"] = 6
    expected = latents(server, prompt, id)
    own = "latent_image seed steps sampler_name scheduler denoise".split()
    guider = add(prompt, "StillmotionMGGuider", **{name: v for name, v in inputs.items() if name not in own})
    plan = {"scheduler": inputs["scheduler"], "steps": inputs["steps"], "denoise": 1.0}
    parts = add(
        prompt,
        "SamplerCustomAdvanced",
        noise=[add(prompt, "RandomNoise", noise_seed=6), 0],
        guider=[guider, 0],
        sampler=[add(prompt, "KSamplerSelect", sampler_name=inputs["sampler_name"]), 0],
        sigmas=[add(prompt, "BasicScheduler", model=inputs["model"], **plan), 0],
        latent_image=inputs["latent_image"],
    )
    assert torch.equal(latents(server, prompt, parts, "SamplerCustomAdvanced"), expected)


def test_a_cancelled_run_leaves_the_next_one_as_it_was(server, prompt):
    id, inputs = sampler_of(prompt, 40.0)
    inputs |= {"seed": 7}
    before = latents(server, prompt, id)
    long = only_latents(prompt, id) | {id: {"class_type": SAMPLER, "inputs": inputs | {"steps": 100}}}
    cancelled = server.run(long, interrupt_at=2)
    assert cancelled.interrupted and not cancelled.files and not cancelled.error
    inputs["denoise"] -= 1e-6  # so that the host's cache does not answer; 0.9999 is already 1
    assert torch.equal(latents(server, prompt, id), before)


def test_a_latent_without_frames_is_refused_by_its_node(server, prompt):
    id, inputs = sampler_of(prompt, 40.0)
    inputs |= {"latent_image": [add(prompt, "EmptyLatentAudio", seconds=1.0, batch_size=1), 0]}
    result = server.run(only_latents(prompt, id))
    assert f"{SAMPLER}: MG guidance compares frames, and latents of shape (1, " in result.error


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("max_pull", 10.5), ("mode", "backwards")])
def test_values_out_of_range_are_refused_before_anything_runs(server, prompt, name, value):
    id, inputs = sampler_of(prompt, 40.0)
    inputs[name] = value
    result = server.run(only_latents(prompt, id))
    assert name in result.error and not result.ran


def test_the_workflow_beside_a_harivo_file_samples_with_its_cfg_schedule_and_mitigation(server, motion, tmp_path):
    config = InflationConfig(Temporal(), mapping=Mapping(), tokens=Tokens(FRAMES))
    options = {"preview_steps": 4, "guidance": 7.5, "guidance_early": 12.0, "mitigation": 40.0}
    info = replace(motion("models/stillmotion/harivo.safetensors", config), options=options, frames=FRAMES)
    write_workflow(
        tmp_path / "w.json", "toy.safetensors", "harivo.safetensors", replace(info, width=64, height=64), "a"
    )
    prompt = server.to_api(json.loads((tmp_path / "w.json").read_text(encoding="utf-8")))
    sampler, inputs = sampler_of(prompt, 40.0)
    assert (inputs["cfg_early"], inputs["cfg_late"], inputs["cfg_switch"], inputs["steps"]) == (12.0, 7.5, 0.3, 4)
    calm = latents(server, prompt, sampler)
    inputs["alpha"] = 0.0
    assert roughness(calm) < roughness(latents(server, prompt, sampler))
