"""`--base auto`: what is a base and what is not, which is best, and what is said of it."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run as tiny
import torch
from safetensors.torch import load_file, save_file
from stillmotion.trainer.base import auto
from stillmotion.trainer.base.auto import (
    AUTO,
    ITSELF,
    Candidate,
    Found,
    candidates,
    hub_folder,
    listed_name,
    reason,
    resolve_base,
    usable,
)
from stillmotion.trainer.commands.toy import make_toy
from stillmotion.trainer.options import ToyOptions


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint file and a diffusers folder that are bases, both small."""
    folder = tmp_path_factory.mktemp("models")
    make_toy(ToyOptions(output=folder / "toy.safetensors", steps=0, unet="small"))
    tiny.write_base(folder / "base")
    (folder / "base/model_index.json").write_text("{}")
    return folder


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    """An empty ComfyUI, in a folder that one works in, without a cache of Hugging Face's."""
    for name in ("checkpoints", "diffusers"):
        (tmp_path / "ComfyUI/models" / name).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auto, "SMALL", 0)
    return tmp_path / "ComfyUI"


def checkpoint(comfyui, name, source):
    path = comfyui / "models/checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, path)
    return path


def stub(path, shapes):
    """A file of tensors with nothing but these names and shapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}, path)


UNET = "model.diffusion_model."
FEW = {
    "input_blocks.1.0.out_layers.3.weight": (8, 8, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.norm1.weight": (8,),
    "output_blocks.0.0.out_layers.3.weight": (8, 8, 1, 1),
}


def image_model(context, channels=4):
    """Shapes of a checkpoint by which its family can be told, and no more."""
    attention = {"input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, context)}
    unet = {**FEW, **attention, "input_blocks.0.0.weight": (8, channels, 1, 1)}
    parts = {"cond_stage_model.transformer.text_model.x": (2,), "first_stage_model.x": (2,)}
    return {**{UNET + name: shape for name, shape in unet.items()}, **parts}


def test_what_is_no_base_is_passed_over_with_its_reason_and_what_is_one_is_found(comfyui, models, tmp_path):
    folder = comfyui / "models/checkpoints"
    stub(folder / "xl.safetensors", image_model(2048))
    stub(folder / "xl2.safetensors", image_model(2048))
    stub(folder / "sd15-inpainting.safetensors", image_model(768, channels=9))
    stub(folder / "lora.safetensors", {"lora_unet_a.lora_up.weight": (2, 2)})
    more = {f"{UNET}large": (1024, 2048)}  # so that it is looked at first
    stub(folder / "v1-5-pruned.safetensors", image_model(768) | more)  # the right name, and hardly a tensor
    (folder / "page.safetensors").write_text("<html>log in</html>")
    (folder / "note.txt").write_text("no model by its name, and never opened")
    whole = models / "toy.safetensors"
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-1])
    few = {name: shape for name, shape in image_model(768).items() if "input_blocks.0.0" not in name}
    stub(folder / "without a first layer.safetensors", few)
    (folder / "folder.safetensors").mkdir()
    right = comfyui / "models/diffusers/good"
    right.symlink_to(models / "base", target_is_directory=True)
    found, passed = usable(candidates([comfyui], tmp_path / "hub"))
    assert [each.candidate for each in found] == [Candidate(right, "good", True)]
    assert passed == {"SDXL": 2, "for inpainting": 1, "a LoRA of an image model": 1, "unreadable": 3, "incomplete": 1}


def test_a_pickled_checkpoint_is_looked_into_without_its_numbers(comfyui, models, monkeypatch):
    tensors = load_file(models / "toy.safetensors")
    torch.save({"state_dict": tensors}, comfyui / "models/checkpoints/old.ckpt")
    monkeypatch.setattr(auto, "check_base", lambda path: None)  # the toy's autoencoder keeps a number that it needs
    found, passed = usable(candidates([comfyui], Path("hub")))
    assert found[0].pickled and found[0].candidate.name == "old.ckpt" and not passed


def test_diffusers_folders_of_comfyui_and_of_the_cache_are_found_by_what_people_call_them(comfyui, models, tmp_path):
    shutil.copytree(models / "base", comfyui / "models/diffusers/mine/v1")
    snapshot = tmp_path / "hub/models--stable-diffusion-v1-5--stable-diffusion-v1-5/snapshots/451f4f"
    shutil.copytree(models / "base", snapshot)
    (tmp_path / "hub/models--a--flux/snapshots/1").mkdir(parents=True)
    (tmp_path / "hub/models--a--flux/snapshots/1/model_index.json").write_text("{}")
    found, passed = usable(candidates([comfyui], hub_folder()))
    assert [each.candidate.name for each in found] == ["mine/v1", "stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert passed == {"of another family": 1}
    assert listed_name(found[0].candidate.path, [comfyui]) == str(Path("mine/v1"))
    assert listed_name(snapshot, [comfyui]) == "stable-diffusion-v1-5--stable-diffusion-v1-5"


def test_a_base_is_called_as_comfyui_lists_it(comfyui, models):
    path = checkpoint(comfyui, "sd15/a.safetensors", models / "toy.safetensors")
    assert listed_name(path, [comfyui]) == str(Path("sd15/a.safetensors"))
    assert listed_name(path, []) == "a.safetensors"


def test_dots_and_links_on_the_way_to_a_base_change_nothing_of_its_name(comfyui, models, tmp_path, monkeypatch):
    checkpoint(comfyui, "sd15/a.safetensors", models / "toy.safetensors")
    (comfyui / "custom_nodes").mkdir()
    monkeypatch.chdir(comfyui / "custom_nodes")
    (tmp_path / "link").symlink_to(comfyui, target_is_directory=True)
    name = str(Path("sd15/a.safetensors"))
    assert listed_name(Path("../models/checkpoints/sd15/a.safetensors"), [comfyui]) == name
    assert listed_name(tmp_path / "link/models/checkpoints/sd15/a.safetensors", [comfyui]) == name
    (comfyui / "models/checkpoints/b.safetensors").symlink_to(models / "toy.safetensors")
    assert listed_name(comfyui / "models/checkpoints/b.safetensors", [comfyui]) == "b.safetensors"


def test_links_that_go_round_end_and_a_model_counts_once(comfyui, models, tmp_path):
    path = checkpoint(comfyui, "a.safetensors", models / "toy.safetensors")
    path.with_name("b.safetensors").symlink_to(path)
    path.with_name("round").symlink_to(path.parent, target_is_directory=True)
    assert [place.path for place in candidates([comfyui], tmp_path)] == [path]


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({}, Path.home() / ".cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_hugging_faces_own_library_has_it(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_folder() == Path(folder)


PLAIN = Found(Candidate(Path("x.safetensors"), "x.safetensors", True), 860, False, 5.0)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"size": 320}, "for the largest U-Net"),
        ({"candidate": PLAIN.candidate._replace(listed=False)}, "since ComfyUI lists it"),
        ({"pickled": True}, "since it is no pickle"),
        ({"newest": 4.0}, "since it is the newest"),
    ],
)
def test_the_best_is_ahead_in_the_first_point_that_differs(change, why):
    worse = replace(PLAIN, newest=9.0)
    worse = replace(worse, **change)
    assert sorted([worse, PLAIN], key=lambda each: each.rank) == [PLAIN, worse]
    assert reason([PLAIN, worse]) == f"taken of 2 of the SD1.5 family {why}"


def test_stable_diffusion_itself_comes_before_newer_models_made_of_it():
    itself = replace(PLAIN, candidate=Candidate(Path("y"), "sd/v1-5-pruned-emaonly-fp16.safetensors", True), newest=0.0)
    assert sorted([PLAIN, itself], key=lambda each: each.rank)[0] is itself
    assert reason([itself, PLAIN]).endswith("since it is Stable Diffusion 1.5 itself by its name")


@pytest.mark.parametrize("name", ["v1-5-pruned-emaonly", "sd15", "SD1.5", "sd-v1-5", "stable-diffusion-v1-5"])
def test_names_of_stable_diffusion_itself(name):
    assert ITSELF.fullmatch(name)


@pytest.mark.parametrize("name", ["realisticVision_sd15", "v1-5-inpainting", "dreamshaper_8", "sd15_lora", "v15things"])
def test_names_of_others(name):
    assert not ITSELF.fullmatch(name)


def test_one_line_says_which_base_it_is_why_and_how_to_take_another(comfyui, models, caplog):
    caplog.set_level(logging.INFO, "stillmotion")
    old = checkpoint(comfyui, "v1-5-pruned.safetensors", models / "toy.safetensors")
    shutil.copy(old, old.with_name("mine.safetensors"))
    stub(old.with_name("xl.safetensors"), image_model(2048))
    assert resolve_base(AUTO, [comfyui]) == old
    (line,) = caplog.messages
    assert line == (
        f"Base: {old}, taken of 2 of the SD1.5 family since it is Stable Diffusion 1.5 itself by its name"
        " (passed over: 1 SDXL). --base and a name or path takes another: mine.safetensors."
    )


def test_the_demos_base_is_better_than_none_and_cannot_be_missed(comfyui, models, caplog, monkeypatch):
    monkeypatch.setattr(auto, "SMALL", 200_000_000)
    Path("demo").mkdir()
    shutil.copy(models / "toy.safetensors", "demo/base.safetensors")
    assert resolve_base(AUTO, [comfyui]) == Path("demo/base.safetensors")
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith("NO REAL IMAGE MODEL WAS FOUND") and "v1-5-pruned-emaonly.safetensors" in warning


def test_nothing_found_is_one_sentence_with_what_to_get(comfyui):
    stub(comfyui / "models/checkpoints/xl.safetensors", image_model(2048))
    with pytest.raises(FileNotFoundError) as error:
        resolve_base(AUTO, [comfyui])
    said = str(error.value)
    assert "(passed over: 1 SDXL)" in said and "--base" in said and "python -m trainer demo" in said


def test_a_base_that_is_named_is_taken_as_it_is(comfyui, models, tmp_path):
    (tmp_path / "x").touch()
    assert resolve_base(tmp_path / "x", [comfyui]) == tmp_path / "x"
    there = checkpoint(comfyui, "sd15/a.safetensors", models / "toy.safetensors")
    assert (
        resolve_base(Path("a.safetensors"), [comfyui]) == resolve_base(Path("sd15/a.safetensors"), [comfyui]) == there
    )
    with pytest.raises(FileNotFoundError, match="no base model at .*y, and ComfyUI lists none of this name; give a"):
        resolve_base(tmp_path / "y", [comfyui])
    there.rename(there.with_name("dreamshaper_8.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"; did you mean dreamshaper_8\.safetensors\?"):
        resolve_base(Path("dreamshaper_8"), [comfyui])


def test_the_gate_at_the_headers_refuses_what_the_whole_gate_refuses(models, tmp_path):
    tensors = load_file(models / "toy.safetensors")
    del tensors[f"{UNET}out.2.bias"]
    save_file(tensors, tmp_path / "lacks.safetensors")
    shutil.copytree(models / "base", tmp_path / "v")
    (tmp_path / "v/scheduler").mkdir()
    (tmp_path / "v/scheduler/scheduler_config.json").write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    for path, words in ((tmp_path / "lacks.safetensors", "its U-Net lacks"), (tmp_path / "v", "squaredcos_cap_v2")):
        with pytest.raises(ValueError, match=words):
            auto.check_base(path)
    auto.check_base(models / "base")
    auto.check_base(models / "toy.safetensors")
