"""Workflows as the editor shows them: nodes lie apart, groups hold them, models say where they are had."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from stillmotion.networks.config import Condition, InflationConfig, Motion, Prior, Temporal
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.motion_file import MotionInfo
from stillmotion.networks.motion_info import Over
from stillmotion.trainer.run.workflow import write_workflow

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "workflows").glob("*.json"))
TITLE = 30
SIZES = json.loads((ROOT / "tests/node_sizes.json").read_text(encoding="utf-8"))
"""Width and height that nodes have at least: `computeSize` of the page of ComfyUI 0.33 (frontend 1.49.6)."""


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def box(node):
    """Left, top, right and bottom of a node with its title, as large as the page makes it."""
    (x, y), size = node["pos"], [max(pair) for pair in zip(node["size"], SIZES[node["type"]])]
    return x, y - TITLE, x + size[0], y + size[1]


def overlapping(workflow):
    boxes = [(node.get("title") or node["type"], box(node)) for node in workflow["nodes"]]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_node_of_a_template_lies_on_another(path):
    assert not overlapping(read(path))


CONFIGS = {
    "few-shot": InflationConfig(),
    "temporal": InflationConfig(Temporal()),
    "an image": InflationConfig(Temporal(), condition=Condition()),
    "over another": InflationConfig(),
    "a still and a dial": InflationConfig(Temporal(), prior=Prior(), motion=Motion()),
}


@pytest.mark.parametrize("options", [{}, {"mitigation": 40.0}], ids=["KSampler", "MG Guidance Sampler"])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("folder", [False, True], ids=["a file", "a folder"])
def test_no_node_of_a_written_workflow_lies_on_another(tmp_path, config, options, folder):
    over = Over("mm.safetensors", "0" * 64, "sd15") if config == "over another" else None
    info = MotionInfo(CONFIGS[config], sd15_like([32, 64], [1, 1]), options=options, over=over)
    write_workflow(tmp_path / "w.json", "base", "motion.safetensors", info, "a red circle", base_is_folder=folder)
    assert not overlapping(read(tmp_path / "w.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_groups_hold_whole_nodes(path):
    workflow = read(path)
    for group in workflow["groups"]:
        x, y, w, h = group["bounding"]
        held = []
        for node in workflow["nodes"]:
            left, top, right, bottom = box(node)
            if left < x + w and right > x and top < y + h and bottom > y:
                held.append(x <= left and y <= top and right <= x + w and bottom <= y + h)
        assert held and all(held), group["title"]


FOR_ANY_CHECKPOINT = [path for path in SHIPPED if "v1-5-pruned" in path.read_text(encoding="utf-8")]
ANIMATEDIFF = [path for path in SHIPPED if path.stem.startswith("animate")]


@pytest.mark.parametrize("path", FOR_ANY_CHECKPOINT, ids=lambda path: path.stem)
def test_a_template_for_any_checkpoint_says_where_its_models_are_had(path):
    """`properties.models` is what the page offers to download; a node that loads a model has its entry."""
    for node in read(path)["nodes"]:
        files = [v for v in node["widgets_values"] if isinstance(v, str) and v.endswith(".safetensors")]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files
        for model in models:
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"])
            assert model["directory"] in ("checkpoints", "stillmotion", "loras", "controlnet")
        if node["type"] == "EmptyLatentImage":
            assert node["widgets_values"][:2] == [512, 512] and node["widgets_values"][2] in (16, 32)


@pytest.mark.parametrize("path", ANIMATEDIFF, ids=lambda path: path.stem)
def test_a_template_says_in_three_lines_what_to_change(path):
    (note,) = (node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] == "MarkdownNote")
    assert [line[:2] for line in note.splitlines()] == ["##", "", "1.", "2.", "3."]
