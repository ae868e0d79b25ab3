"""From an empty queue to a video on disk, in a real ComfyUI over HTTP."""

import itertools
import json
from dataclasses import replace

import av
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageSequence
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.sites import Level, Structure
from stillmotion.trainer.run.workflow import TEMPLATE, write_workflow
from torchvision.transforms.functional import pil_to_tensor

FEW_SHOT = InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(4))
UNLIKE = 4 / 255  # mean difference of two pictures that anybody would see


@pytest.fixture(scope="module", autouse=True)
def files(models, motion):
    """Motion files as users have them, in the default folder and in one of extra_model_paths.yaml."""
    motion("models/stillmotion/guitar.safetensors", FEW_SHOT)
    motion("more/motion/other.safetensors", FEW_SHOT, seed=1)
    slim = Structure((Level(32, (1,), (1, 1)),), middle=0, context=1024)
    motion("models/stillmotion/sd21.safetensors", FEW_SHOT, fits=slim)


def pictures(path):
    """Frames of a video or of an animated WebP, (frames, 3, height, width) from 0 to 1."""
    if path.suffix == ".webp":
        with Image.open(path) as file:
            return torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]) / 255
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        return torch.stack([pil_to_tensor(frame.to_image()) for frame in file.decode(video=0)]) / 255


def latents(result):
    """What the sampler made in this very run, not what the host remembers of an earlier one."""
    assert not result.error and "KSampler" in result.ran, result.error
    return safetensors.torch.load_file(result.files["SaveLatent"][0])["latent_tensor"]


def without_motion(graph, loader="StillmotionRecurrentMotionLoRA"):
    """The same graph with the sampler wired to what the motion loader was wired to."""
    return graph.set("KSampler", model=graph.inputs(loader)["model"]).remove(loader)


def again(graph):
    """The same sampling under another value, so that the host does not answer from its cache: 0.9999 is already 1."""
    graph.inputs("KSampler")["denoise"] -= 1e-6
    return graph


def only_latents(graph):
    return graph.remove("SaveVideo", "SaveAnimatedWEBP", "CreateVideo", "VAEDecode")


def check_video(result, frames):
    assert not result.error, result.error
    for kind, suffix in (("SaveVideo", ".mp4"), ("SaveAnimatedWEBP", ".webp")):
        (path,) = result.files[kind]
        seen = pictures(path)
        assert path.suffix == suffix and seen.shape == (frames, 3, 64, 64)
        assert all((a - b).abs().mean() > UNLIKE for a, b in itertools.combinations(seen, 2))


def test_the_shipped_workflow_makes_a_video_that_the_base_alone_does_not(server, graph):
    result = server.run(graph().prompt)
    check_video(result, frames=4)
    still = latents(server.run(without_motion(graph()).prompt))
    assert (latents(result) - still).abs().mean(dim=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
    "config, loader",
    [(FEW_SHOT, "StillmotionRecurrentMotionLoRA"), (InflationConfig(temporal=Temporal()), "StillmotionSTUNetLoader")],
)
def test_a_workflow_written_beside_a_motion_file_makes_a_video(server, graph, motion, tmp_path, config, loader):
    info = replace(motion("models/stillmotion/wave.safetensors", config), frames=5)
    write_workflow(tmp_path / "workflow.json", "toy.safetensors", "wave.safetensors", info, "a red circle")
    written = graph(json.loads((tmp_path / "workflow.json").read_text(encoding="utf-8")), frames=5)
    result = server.run(written.prompt)
    check_video(result, frames=5)
    still = latents(server.run(without_motion(written, loader).prompt))
    assert (latents(result) - still).abs().mean(dim=(1, 2, 3)).min() > 0.1


def test_another_motion_file_on_the_same_base_leaves_no_trace(server, graph):
    def run(motion_file):
        chosen = only_latents(graph()).set("StillmotionRecurrentMotionLoRA", motion_file=motion_file)
        return latents(server.run(again(chosen).prompt))

    first, second = run("guitar.safetensors"), run("other.safetensors")
    back = again(again(only_latents(graph())))
    result = server.run(back.prompt)
    assert "CheckpointLoaderSimple" not in result.ran, "the base was loaded anew and could not show a trace"
    assert torch.equal(latents(result), first)
    assert (second - first).abs().mean() > 0.1


def test_a_cancelled_run_leaves_the_next_one_as_it_was(server, graph):
    before = latents(server.run(again(only_latents(graph(seed=1))).prompt))
    cancelled = server.run(only_latents(graph(seed=1, steps=100)).prompt, interrupt_at=2)
    assert cancelled.interrupted and not cancelled.files and not cancelled.error
    after = latents(server.run(again(again(only_latents(graph(seed=1)))).prompt))
    assert torch.equal(after, before)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_lora_on_the_base_acts_before_and_after_the_motion(server, graph, lora, place):
    plain = only_latents(graph(seed=2))
    expected = latents(server.run(again(plain).prompt))
    motion = "StillmotionRecurrentMotionLoRA"
    below, above = ("CheckpointLoaderSimple", motion) if place == "before" else (motion, "KSampler")
    added = plain.add("LoraLoaderModelOnly", model=[plain.id(below), 0], lora_name=lora, strength_model=1.0)
    changed = latents(server.run(plain.set(above, model=[added, 0]).prompt))
    assert (changed - expected).abs().mean() > 0.1
    assert "lora key not loaded" not in server.log.read_text()


def test_a_controlnet_on_the_base_acts_beside_the_motion(server, graph, controlnet):
    plain = only_latents(graph(seed=3))
    expected = latents(server.run(again(plain).prompt))
    net = plain.add("ControlNetLoader", control_net_name=controlnet)
    hint = plain.add("EmptyImage", width=64, height=64, batch_size=4, color=0xFF8040)
    given = plain.inputs("KSampler")
    applied = plain.add(
        "ControlNetApplyAdvanced",
        positive=given["positive"],
        negative=given["negative"],
        control_net=[net, 0],
        image=[hint, 0],
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    both = latents(server.run(plain.set("KSampler", positive=[applied, 0], negative=[applied, 1]).prompt))
    still = latents(server.run(without_motion(plain).prompt))
    for without in (expected, still):
        assert (both - without).abs().mean(dim=(1, 2, 3)).min() > 0.1
    log = server.log.read_text()
    assert "control could not be applied" not in log and "missing controlnet keys" not in log


def test_a_motion_file_that_is_not_there_is_refused_before_anything_runs(server, graph):
    result = server.run(graph().set("StillmotionRecurrentMotionLoRA", motion_file="gone.safetensors").prompt)
    assert "motion_file: 'gone.safetensors' not in" in result.error and not result.ran


def test_a_motion_file_of_another_family_is_refused_by_its_node(server, graph):
    result = server.run(graph().set("StillmotionRecurrentMotionLoRA", motion_file="sd21.safetensors").prompt)
    assert result.error.startswith("StillmotionRecurrentMotionLoRA")
    assert "sd21.safetensors was made for sd21 models; this model is sd15" in result.error


def test_frames_that_are_no_whole_number_of_clips_are_refused(server, graph):
    asked = graph(frames=10)
    model = asked.inputs("StillmotionRecurrentMotionLoRA")["model"]
    loader = asked.add(
        "StillmotionSTUNetLoader",
        model=model,
        motion_file="guitar.safetensors",
        strength=1.0,
        frames_per_clip=4,
        schedule="from file",
    )
    result = server.run(asked.set("KSampler", model=[loader, 0]).prompt)
    assert "The latent has 10 frames, which are no whole number of clips of 4 frames" in result.error


def test_the_host_offers_the_templates_and_the_help_pages(server, shipped):
    shipped_names = sorted(path.stem for path in TEMPLATE.parent.glob("*.json"))
    assert sorted(server.get("/api/workflow_templates")["Still-Motion"]) == shipped_names
    assert server.get("/api/workflow_templates/Still-Motion/few_shot_motion.json") == shipped
    for node in (id for id in server.object_info if id.startswith("Stillmotion")):
        page = server.get(f"/extensions/Still-Motion/docs/{node}.md", raw=True)
        assert page.startswith("# ") and "## Inputs" in page
