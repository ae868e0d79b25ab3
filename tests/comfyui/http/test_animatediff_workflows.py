"""The workflows for files that people have, with stand-ins under the names in them, over HTTP."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy
import pytest
import safetensors.torch
import torch
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.formats.modules import module_names

WORKFLOWS = Path(__file__).resolve().parents[3] / "workflows"
NAMES = ["animatediff", "animatelcm", "animatediff_controlnet", "animatediff_upscale", "animatediff_camera"]
FRAMES = 4
SMALL = {
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": FRAMES},
    "KSampler": {"steps": 2, "seed": 0},
    "ImageScale": {"width": 64, "height": 64},
    "StillmotionTemporalWindows": {"window": 3, "overlap": 1},
    "StillmotionMultiDiffusionUpscale": {"steps": 2, "window": 3, "overlap": 1, "seed": 0},
}


def workflow(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def files(models, motion, lora, controlnet):
    """A random file of the right kind for every model that a workflow names, and a clip to follow."""
    stand_ins = {"checkpoints": "checkpoints/toy.safetensors", "loras": f"loras/{lora}"}
    stand_ins["controlnet"] = f"controlnet/{controlnet}"
    for name in NAMES:
        for node in workflow(name)["nodes"]:
            for model in node["properties"].get("models", []):
                path = models / "models" / model["directory"] / model["name"]
                if node["type"] == "StillmotionSTUNetLoader":
                    info = motion(path.relative_to(models), InflationConfig(Temporal()))
                elif node["type"] == "StillmotionMotionLoRA":
                    safetensors.torch.save_file(motion_lora(info), path)
                elif not path.exists():
                    path.parent.mkdir(exist_ok=True)
                    shutil.copy(models / "models" / stand_ins[model["directory"]], path)
    with av.open(str(models / "input/clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(8))
        stream.width = stream.height = 64
        for number in range(FRAMES):
            picture = numpy.zeros((64, 64, 3), dtype=numpy.uint8)
            picture[8:40, 8 * number : 8 * number + 24] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        file.mux(stream.encode())


def motion_lora(info):
    widths, tensors = {site.name: site.width for site in info.structure.sites()}, {}
    for site, module in module_names(info).items():
        name = f"{module}.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
        down, up = torch.randn(2, widths[site]), torch.randn(widths[site], 2)
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_for_files_that_people_have_makes_a_video(server, name):
    prompt = server.to_api(workflow(name))
    for node in prompt.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    result = server.run(prompt)
    assert not result.error and "KSampler" in result.ran, result.error
    (path,) = result.files["SaveVideo"]
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == FRAMES and (frames[0] != frames[-1]).any()
