"""The command that a newcomer types, with no option but the clips: what is found, said, written and installed."""

import json
import logging
import os
import shutil

import pytest
import tiny_run as tiny
from accelerate.state import AcceleratorState
from stillmotion.trainer.base import auto, comfyui
from stillmotion.trainer.cli import main
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run.session import begin

SMALL = "--size 64x48 --frames 3 --steps 2 --preview-every none"  # what a test cannot do without


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A folder with clips, in which one works, beside a ComfyUI with one base."""
    folder = tmp_path_factory.mktemp("machine")
    host = folder / "ComfyUI"
    (host / "custom_nodes").mkdir(parents=True)
    tiny.write_base(host / "models/diffusers/mine")
    (host / "models/diffusers/mine/model_index.json").write_text("{}")
    tiny.write_clips(folder / "clips", 2)
    return folder


@pytest.fixture(autouse=True)
def at_home(machine, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_CACHE", str(machine / "hub"))
    monkeypatch.delenv(comfyui.VARIABLE, raising=False)
    monkeypatch.setattr(comfyui, "roots", lambda: [machine])
    monkeypatch.setattr(auto, "SMALL", 0)
    monkeypatch.chdir(machine)
    caplog.set_level(logging.INFO, "stillmotion")


def fewshot(*more):
    AcceleratorState._reset_state(True)
    return main(["fewshot", "--videos", "clips", *SMALL.split(), *more])


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_says_all_and_writes_nothing(machine, caplog):
    before = tree(machine)
    assert fewshot("--dry-run") == 0
    assert tree(machine) == before
    base = machine / "ComfyUI/models/diffusers/mine"
    for words in (f"Base: {base}, the only one", "0.gif", "Memory of a step, estimated", "2 steps about"):
        assert words in caplog.text
    stages = [line for line in caplog.messages if " of 5: " in line]
    assert stages == [
        "1 of 5: looking at the clips",
        "2 of 5: loading the image model",
        "4 of 5: memory and time of a step",
    ]
    assert caplog.messages[-1].endswith(f"goes to runs/motion, and the motion file into ComfyUI at {machine}/ComfyUI.")


def test_a_folder_that_is_called_auto_is_not_what_auto_means(machine, tmp_path, monkeypatch):
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(True)
    session = begin(FewShotOptions(videos="clips", install="no"))
    assert session.options.base == machine / "ComfyUI/models/diffusers/mine"


def test_the_command_as_typed_ends_in_comfyui_and_says_how_it_is_resumed(machine, capsys, caplog):
    assert fewshot() == 0
    host = machine / "ComfyUI"
    motion, workflow = host / "models/stillmotion/motion.safetensors", host / "user/default/workflows/motion.json"
    assert motion.read_bytes() == (machine / "runs/motion/motion.safetensors").read_bytes()
    values = [node["widgets_values"] for node in json.loads(workflow.read_text())["nodes"] if "widgets_values" in node]
    assert ["mine"] in values and any(value[0] == "motion.safetensors" for value in values)
    assert str(workflow) in caplog.messages[-1]
    assert fewshot() == 2
    assert "runs/motion holds a run already, and it is finished" in capsys.readouterr().err
    (machine / "runs/motion/motion.safetensors").unlink()
    assert fewshot() == 2
    assert "saved after step 2: add --resume to go on with it" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_base_though_a_better_one_has_come(machine):
    own = machine / "ComfyUI/models/diffusers/mine"
    better = shutil.copytree(own, own.with_name("newer"))
    os.utime(better, (2**31, 2**31))
    AcceleratorState._reset_state(True)
    begun, new = (
        begin(FewShotOptions(videos="clips", output=output, resume=output == "runs/motion"))
        for output in ("runs/motion", "another")
    )
    shutil.rmtree(better)
    assert begun.save and begun.options.base == own
    assert new.save is None and new.options.base == better


def test_clips_without_captions_are_refused_with_the_shortest_thing_that_works(machine, capsys):
    for text in (machine / "clips").glob("*.txt"):
        text.rename(text.with_suffix(".away"))
    assert fewshot("--dry-run", "--output", "new") == 2
    said = capsys.readouterr().err
    assert "None of the 2 clips has a caption" in said and '--caption "a man playing the guitar"' in said
