"""`fewshot` that leaves looks behind, and that learns a camera motion of stills: whole commands."""

import logging

import numpy as np
import pytest
import tiny_run as tiny
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from stillmotion.networks.motion_file import read_motion_file
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.checkpoints import same
from stillmotion.trainer.run.runlog import read_log

NUMBERS = "--size 64x48 --frames 3 --learning-rate 1e-3 --warm-up 1 --preview-every none --held-out-every 9"
LOOKS = "--steps 3 --appearance lora --appearance-rank 3 --debias 0.5 --first-frame clean --recurrence none"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def run(place, output, *more, videos="clips"):
    AcceleratorState._reset_state(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_path, "report_estimate", lambda *_: None)
        return main(tiny.words(place, "fewshot", output, *NUMBERS.split(), *more, videos=videos))


@pytest.fixture(scope="module")
def looks(place):
    """A run on both paths that nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert run(place, "looks", *LOOKS.split()) == 0
    return place / "looks"


def test_looks_lie_beside_the_motion_file_as_a_lora(looks):
    tensors = load_file(looks / "looks_lora.safetensors")
    layers = {name.split(".")[0] for name in tensors}
    assert all(name.startswith("lora_unet_") for name in layers)
    assert any("ff_net" in name for name in layers) and any("attn2_to_k" in name for name in layers)
    assert all(tensors[f"{name}.lora_up.weight"].any() for name in layers)
    info, motion = read_motion_file(looks / "looks.safetensors", fits=structure_of(tiny.tiny_unet(context=768)))
    assert not any("lora" in name or "spatial" in name for name in motion)
    assert info.options["appearance"] == "lora" and info.options["debias"] == 0.5


def test_the_log_has_every_part_of_the_loss(looks):
    lines = [line for line in read_log(looks / "log.jsonl") if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        parts = line["loss_simple"] + line["loss_pictures"] + 0.5 * line["loss_debias"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


def test_stopped_and_resumed_gives_the_same_files(place, looks):
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert run(place, "stopped", *LOOKS.split()) == 0
    assert run(place, "stopped", *LOOKS.split(), "--resume") == 0
    for end in ("", "_lora"):
        assert same(*(load_file(place / f"{name}/{name}{end}.safetensors") for name in ("stopped", "looks")))


@pytest.fixture(scope="module")
def pictures(place):
    folder = place / "pictures"
    folder.mkdir()
    for number in range(2):
        small = np.random.default_rng(number).integers(0, 255, (8, 10, 3), np.uint8)
        Image.fromarray(small).resize((160, 120)).save(folder / f"{number}.png")
    return folder


CAMERA = "--camera pan-left --caption words --steps 1"


def test_a_camera_over_pictures_gives_a_motion_file(place, pictures):
    assert run(place, "panned", *CAMERA.split(), videos="pictures") == 0
    info, _ = read_motion_file(place / "panned/panned.safetensors")
    assert (info.options["camera"], info.options["camera_range"], info.frames) == ("pan-left", 0.5, 3)
    assert Image.open(place / "panned/clips.png").size[0] > 3 * 64


def test_a_dry_run_and_check_say_what_the_camera_makes(place, pictures, caplog, capsys, monkeypatch):
    caplog.set_level(logging.INFO, "stillmotion")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)
    assert run(place, "dry", *CAMERA.split(), "--dry-run", videos="pictures") == 0
    assert "0.png" in caplog.text and not (place / "dry").exists()
    words = f"check --videos {pictures} --size 64x48 --frames 3 --camera tilt-up --caption words --output"
    assert main([*words.split(), str(place / "checked")]) == 0
    assert "2 clips, 6 frames at 8 fps: 2 windows of 3 frames" in capsys.readouterr().out


def test_without_a_camera_a_folder_of_two_pictures_is_one_clip_and_too_short(place, pictures, capsys):
    assert run(place, "none", "--caption", "words", videos="pictures") == 2
    assert "too short" in capsys.readouterr().err


def test_a_camera_motion_that_there_is_not_is_refused_with_those_there_are(place, pictures, capsys):
    assert run(place, "none", "--camera", "dolly", videos="pictures") == 2
    error = capsys.readouterr().err
    assert "--camera is dolly" in error and "roll-ccw" in error
