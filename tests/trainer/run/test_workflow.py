"""The workflow that `fewshot` writes is the shipped one with the motion file's own values in it."""

import json
from dataclasses import replace

import pytest
from stillmotion.networks.config import (
    Appearance,
    Condition,
    InflationConfig,
    Mapping,
    Motion,
    Prior,
    Recurrence,
    Temporal,
    Tokens,
)
from stillmotion.networks.motion_file import MotionInfo
from stillmotion.networks.motion_info import Over
from stillmotion.networks.sites import Level, Structure
from stillmotion.trainer.run.workflow import TEMPLATE, write_workflow

SLIM = Structure((Level(32, (1,), (1, 1)),), middle=0, context=768)
INFO = MotionInfo(InflationConfig(recurrence=Recurrence()), SLIM, frames=5, fps=12.5, width=72, height=40)


@pytest.fixture
def written(tmp_path):
    def nodes(info, base="base.safetensors", **more):
        write_workflow(tmp_path / "w.json", base, "wave.safetensors", info, "Grüße: “a red circle”", **more)
        workflow = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))
        return {node.get("title", node["type"]): node for node in workflow["nodes"]}

    return nodes


def test_a_workflow_has_the_values_of_its_motion_file(written):
    values = {title: node["widgets_values"] for title, node in written(INFO).items()}
    assert values["The image model"] == ["base.safetensors"]
    assert values["The motion"] == ["wave.safetensors", 1.0, 1.0, 1.0]
    assert values["Prompt"] == ["Grüße: “a red circle”"] and values["Negative prompt"] == [""]
    assert values["Frames and their size"] == [72, 40, 5]
    assert values["KSampler"][2:] == [25, 7.5, "ddim", "ddim_uniform", 1.0]
    assert values["CreateVideo"] == [12.5] and values["SaveAnimatedWEBP"][1] == 12.5
    assert all(text in values["Read me"][0] for text in ("wave.safetensors", "5 frames", "72 x 40", "12.5 frames"))


def test_a_workflow_samples_as_the_previews_of_its_training_did(written):
    sampler = written(replace(INFO, options={"preview_steps": 10, "guidance": 4.0}))["KSampler"]
    assert sampler["widgets_values"][2:4] == [10, 4.0]


def test_a_run_with_harivos_sampling_gets_the_sampler_that_has_it(written):
    harivo = {"preview_steps": 25, "guidance": 7.5, "guidance_early": 12.0, "mitigation": 40.0}
    nodes = written(replace(INFO, options=harivo))
    sampler = nodes["StillmotionMGGuidanceSampler"]
    plain = written(INFO)["KSampler"]
    assert "KSampler" not in nodes and sampler["inputs"] == plain["inputs"] and sampler["outputs"] == plain["outputs"]
    assert sampler["widgets_values"][2:10] == [25, "ddim", "ddim_uniform", 1.0, 12.0, 7.5, 0.3, 40.0]
    assert nodes["VAEDecode"]["pos"][1] > sampler["pos"][1] + sampler["size"][1] + 30


@pytest.mark.parametrize("more", [{"temporal": Temporal()}, {"mapping": Mapping()}, {"tokens": Tokens(5)}])
def test_a_file_with_more_than_few_shot_motion_is_loaded_by_the_stunet_loader(written, more):
    node = written(replace(INFO, config=InflationConfig(recurrence=Recurrence(), **more)))["The motion"]
    assert node["type"] == "StillmotionSTUNetLoader"
    assert node["widgets_values"] == ["wave.safetensors", 1.0, 0, "from file", "", ""]


@pytest.mark.parametrize(
    "trained",
    [{"config": InflationConfig(condition=Condition())}, {"options": {"first_frame": "clean"}}],
)
def test_a_file_that_was_trained_with_given_pixels_gets_an_image_to_go_on_from(written, tmp_path, trained):
    nodes = written(replace(INFO, **trained))
    links = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))["links"]
    asking = nodes["StillmotionVideoInpaint"]
    assert asking["widgets_values"][:2] == ["image to video", 5]
    size = linked(nodes, links, "StillmotionVideoInpaint", "image")
    assert size["widgets_values"][1:3] == [72, 40]
    assert linked(nodes, links, size["title"], "image")["type"] == "LoadImage"
    assert linked(nodes, links, "The clip", "latent_image") == asking
    assert nodes["The motion"]["widgets_values"][0] == "wave.safetensors"


def test_a_base_in_a_folder_is_loaded_by_the_loader_of_folders(written):
    nodes = written(INFO, "sd15", base_is_folder=True)
    assert nodes["The image model"]["type"] == "DiffusersLoader"
    assert nodes["The image model"]["widgets_values"] == ["sd15"]
    assert "`sd15` into `models/diffusers` (the whole folder" in nodes["Read me"]["widgets_values"][0]
    assert "`base.safetensors` into `models/checkpoints`," in written(INFO)["Read me"]["widgets_values"][0]


SHIPPED = pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATE.parent.glob("*.json")))


@SHIPPED
def test_the_links_of_a_shipped_workflow_agree_from_both_ends(name):
    agree_from_both_ends(json.loads(TEMPLATE.with_name(name).read_text(encoding="utf-8")))


def agree_from_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    ends = [(i["link"], n["id"], k, i["type"]) for n in nodes.values() for k, i in enumerate(n["inputs"]) if i["link"]]
    assert sorted(ends) == sorted((link, to, slot, kind) for link, _, _, to, slot, kind in workflow["links"])
    starts = [
        (link, n["id"], k) for n in nodes.values() for k, o in enumerate(n["outputs"]) for link in o["links"] or []
    ]
    assert sorted(starts) == sorted((link, origin, slot) for link, origin, slot, *_ in workflow["links"])
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes)


HIGEN = replace(
    INFO,
    config=InflationConfig(prior=Prior(), motion=Motion(), appearance=Appearance(5)),
    factors={"motion": [40.0, 210.4, 900.0], "appearance": [0.0, 0.3, 1.2]},
    options={"preview_steps": 10, "guidance": 4.0},
)


OVER = Over("v3_sd15_mm.ckpt", "0" * 64, "sd15")


@pytest.mark.parametrize("more", [{}, {"options": {"first_frame": "clean"}}], ids=["text", "an image"])
def test_a_file_that_was_learnt_on_top_of_another_is_loaded_behind_it(written, tmp_path, more):
    nodes = written(replace(INFO, over=OVER, **more))
    workflow = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))
    ground = linked(nodes, workflow["links"], "The motion", "model")
    assert (ground["type"], ground["widgets_values"][0]) == ("StillmotionSTUNetLoader", "v3_sd15_mm.safetensors")
    assert linked(nodes, workflow["links"], ground["title"], "model")["type"] == "CheckpointLoaderSimple"
    assert nodes["The motion"]["widgets_values"][0] == "wave.safetensors"
    note = nodes["Read me"]["widgets_values"][0]
    assert "convert --input v3_sd15_mm.ckpt --output v3_sd15_mm.safetensors" in note
    agree_from_both_ends(workflow)


def linked(nodes, links, title, name):
    """The node that an input comes from."""
    link = next(socket["link"] for socket in nodes[title]["inputs"] if socket["name"] == name)
    number = next(found[1] for found in links if found[0] == link)
    return next(node for node in nodes.values() if node["id"] == number)


def test_a_file_with_a_prior_gets_the_still_of_the_plain_model_and_the_clip_of_it(written, tmp_path):
    nodes = written(HIGEN)
    links = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))["links"]
    still, clip = "The still, by the image model", "The clip"
    assert nodes["One picture, of the clip's size"]["widgets_values"] == [72, 40, 1]
    assert nodes["Frames of the clip"]["widgets_values"] == [72, 40, 5]
    assert [nodes[name]["widgets_values"][2:4] for name in (still, clip)] == [[10, 4.0]] * 2
    assert linked(nodes, links, still, "model")["type"] == "CheckpointLoaderSimple"
    dials = linked(nodes, links, clip, "model")
    assert dials["widgets_values"][:3] == [210.0, 0.3, "motion and appearance"]
    prior = linked(nodes, links, dials["title"], "model")
    assert prior["type"] == "StillmotionSpatialPrior"
    assert linked(nodes, links, prior["title"], "latent")["title"] == still
    assert linked(nodes, links, prior["title"], "model")["widgets_values"][0] == "wave.safetensors"
    assert len({node["id"] for node in nodes.values()}) == len(nodes)


def test_the_dials_are_those_that_the_file_has(written):
    for part, asks in (("motion", "motion"), ("appearance", "appearance")):
        config = replace(InflationConfig(temporal=Temporal()), **{part: getattr(HIGEN.config, part)})
        dials = written(replace(HIGEN, config=config))["How much happens in it"]
        assert dials["widgets_values"][2] == asks
    assert "How much happens in it" not in written(replace(HIGEN, config=InflationConfig(prior=Prior())))


@pytest.mark.parametrize(
    "caption, prompt",
    [
        ("a man (left) waves, {red|blue}", r"a man \(left\) waves, \{red|blue\}"),
        ("word " * 80, ("word " * 75).strip()),
    ],
)
def test_the_prompt_is_the_caption_as_comfyui_must_be_told_it(tmp_path, caption, prompt):
    write_workflow(tmp_path / "w.json", "base.safetensors", "wave.safetensors", INFO, caption)
    nodes = json.loads((tmp_path / "w.json").read_text(encoding="utf-8"))["nodes"]
    (node,) = [node for node in nodes if node.get("title") == "Prompt"]
    assert [text.strip() for text in node["widgets_values"]] == [prompt]
