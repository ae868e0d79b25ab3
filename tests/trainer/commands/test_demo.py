"""The whole `demo` command on a base of the smallest size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageSequence
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.trainer.cli import main
from stillmotion.trainer.commands.demo import draw_clips
from stillmotion.trainer.options import DemoOptions
from stillmotion.trainer.run import compare
from stillmotion.trainer.run.runlog import read_log


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Runs the command with so many steps and gives its exit code."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.manual_seed(0)
    tiny.write_base(tmp_path / "base")
    of_full_length = compare.sample_clip
    monkeypatch.setattr(compare, "sample_clip", lambda *given: of_full_length(*given[:4], replace(given[4], steps=2)))

    def run(steps):
        AcceleratorState._reset_state(True)
        given = {"--base": tmp_path / "base", "--output": tmp_path / "demo", "--steps": steps}
        return main(["demo", *(str(word) for pair in given.items() for word in pair)])

    return run


def frames_of(path):
    with Image.open(path) as file:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)])


def test_a_demo_leaves_both_clips_and_all_that_made_them_and_says_where(demo, tmp_path, caplog):
    assert demo(2) == 0
    out, run = tmp_path / "demo", tmp_path / "demo/swing"
    assert sorted(path.name for path in (out / "clips").iterdir()) == sorted(
        f"{number:02}.{kind}" for number in range(10) for kind in ("mp4", "txt")
    )
    assert read_motion_info(run / "swing.safetensors").frames == 16
    made = [f"{name}{rest}" for name in ("with", "without") for rest in (".mp4", ".webp", "_x-t.png")] + ["sheet.png"]
    paths = [*(out / name for name in made), run / "swing_workflow.json"]
    assert all(path.is_file() and str(path) in caplog.text for path in paths)
    assert "swing.safetensors" in json.dumps(json.loads(paths[-1].read_text(encoding="utf-8")))
    still, moving = frames_of(out / "without.webp"), frames_of(out / "with.webp")
    assert still.shape == moving.shape == (16, 64, 64, 3) and (still != moving).any()


def test_a_second_call_makes_nothing_anew(demo, tmp_path):
    assert demo(1) == demo(1) == 0
    run = tmp_path / "demo/swing"
    assert [line["step"] for line in read_log(run / "log.jsonl") if "loss" in line] == [1]


def test_clips_that_are_there_stay_and_others_are_drawn_anew(tmp_path):
    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    draw_clips(tmp_path, DemoOptions())
    first = stamps()
    draw_clips(tmp_path, DemoOptions())
    assert stamps() == first
    (tmp_path / "03.txt").unlink()
    draw_clips(tmp_path, DemoOptions())
    assert {name for name, stamp in stamps().items() if stamp != first[name]} == {"03.mp4", "03.txt"}
    draw_clips(tmp_path, DemoOptions(motion="grow"))
    assert stamps().keys() == first.keys() and not stamps().items() & first.items()
