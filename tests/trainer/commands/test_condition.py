"""The whole `condition` command on a base and clips of the smallest size, and known pixels beside other commands."""

import logging

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from stillmotion.networks.motion_file import MotionInfo, read_motion_file, write_motion_file
from stillmotion.networks.presets import PRESETS, harivo, with_condition, with_guidance
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.checkpoints import same
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.runlog import read_log

NUMBERS = "--size 64x48 --frames 4 --steps 4 --warm-up 1 --learning-rate 1e-3 --ema 0.9 --save-every 2"
QUIET = "--preview-every none --held-out-every 9"
SHARES = "--steps 2 --text-to-video 0.1 --inpaint 0.4"
STRUCTURE = structure_of(tiny.tiny_unet(context=768))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)


def run(place, output, *more, command="condition", quiet=True):
    AcceleratorState._reset_state(True)
    words = [*NUMBERS.split(), *(QUIET.split() if quiet else ()), *more]
    return main(tiny.words(place, command, output, *words))


@pytest.fixture(scope="module")
def whole(place):
    """With the estimate, a held-out clip and previews."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        more = "--preview-every 4 --preview-steps 2 --held-out 1 --batch-size 2".split()
        assert run(place, "whole", *more, quiet=False) == 0
    return place / "whole"


def test_the_motion_file_has_the_blocks_and_a_stem_that_learnt(whole):
    info, tensors = read_motion_file(whole / "whole.safetensors", fits=STRUCTURE)
    assert info.config == with_condition(PRESETS["animatediff"](STRUCTURE, 4))
    assert info.options["inpaint"] == 0.2
    fresh = fresh_inflation(info.config, STRUCTURE, 0).state_dict()
    moved = {name for name in fresh if not torch.equal(tensors[name], fresh[name])}
    assert moved == fresh.keys()
    assert set(read_log(whole / "log.jsonl")[-1]["moved"]) == {"attention", "condition"}


def test_previews_are_a_clip_of_nothing_and_a_row_for_each_other_task(whole):
    sizes = {}
    for path in sorted((whole / "previews").glob("*.webp")):
        with Image.open(path) as preview:
            sizes[path.stem] = preview.size, preview.n_frames
    assert sizes == {"step-000004": ((64, 48), 4), "step-000004-known": ((2 * 64, 5 * 48), 4)}


@pytest.fixture(scope="module")
def through(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(shared_path, "report_estimate", lambda *_: None)
        assert run(place, "through", *SHARES.split()) == 0
    return place / "through"


def test_stopped_and_resumed_gives_the_same_file(place, through):
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert run(place, "stopped", *SHARES.split()) == 0
    assert run(place, "stopped", "--resume", *SHARES.split()) == 0
    ours, theirs = (load_file(place / f"{name}/{name}.safetensors") for name in ("stopped", "through"))
    assert same(ours, theirs)


def test_a_resumed_run_must_have_the_same_shares(place, through, capsys):
    assert run(place, "through", "--resume", *SHARES.split(), "--inpaint", "0.3") == 2
    assert "--inpaint is 0.3, but" in capsys.readouterr().err


@pytest.fixture
def motion(place):
    """A motion file with HARIVO's parts, on its schedule, as if it had been trained."""
    config = harivo(STRUCTURE, 4)
    made, path = fresh_inflation(config, STRUCTURE, 3), place / "motion.safetensors"
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_motion_file(path, made.state_dict(), MotionInfo(config, STRUCTURE, schedule="linear", frames=4))
    return path


def test_a_motion_file_goes_on_with_all_its_parts_and_schedule(place, motion, caplog):
    caplog.set_level(logging.INFO, "stillmotion")
    assert run(place, "further", "--init", str(motion), "--learning-rate", "1e-6", "--steps", "1") == 0
    info, tensors = read_motion_file(place / "further/further.safetensors")
    assert info.config == with_condition(harivo(STRUCTURE, 4)) and info.schedule == "linear"
    for name, tensor in load_file(motion).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-4)
    assert "1 start new: 1 condition" in caplog.text


def test_its_stem_goes_on_learning_where_it_has_one(place, motion):
    assert run(place, "further-2", "--init", str(place / "further/further.safetensors"), "--steps", "1") == 0
    info, _ = read_motion_file(place / "further-2/further-2.safetensors")
    assert info.config == with_condition(harivo(STRUCTURE, 4))


@pytest.mark.parametrize(
    "more, said",
    [
        (["--inpaint", "1.5"], "--inpaint is 1.5"),
        (
            [f"--{name}={0}" for name in "image-to-video key-frames inpaint outpaint cinemagraph".split()],
            "in no task a pixel is known",
        ),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--init", "a.safetensors", "--blocks", "attention"], "--blocks is for a new motion file"),
        (["--conditions"], "--conditions"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(place, capsys, more, said):
    assert run(place, "refused", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["inflate", "decouple"])
def test_other_commands_learn_it_in_the_same_run(place, command):
    output = f"{command}-with"
    more = "--condition --preview-every 1 --preview-steps 1 --steps 1 --preset higen".split()
    assert run(place, output, *more, command=command, quiet=False) == 0
    info, tensors = read_motion_file(place / f"{output}/{output}.safetensors")
    config = PRESETS["higen"](STRUCTURE, 4)
    assert info.config == with_condition(config if command == "inflate" else with_guidance(config, 4))
    assert next(tensor for name, tensor in tensors.items() if ".condition." in name).any()
    assert len(list((place / output / "previews").glob("*-known.webp"))) == 1
