"""Training starts from motion files of any program: what is taken over, what is not, and whose frames are halved."""

import json
from dataclasses import replace

import pytest
import tiny_run as tiny
import torch
from safetensors.torch import save_file
from stillmotion.networks.config import InflationConfig, Mapping, Resampling, Temporal, Tokens
from stillmotion.networks.formats.animatediff import to_animatediff
from stillmotion.networks.formats.motion_adapter import to_motion_adapter
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.presets import PRESETS
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.config import read_options
from stillmotion.trainer.options import InflateOptions
from stillmotion.trainer.run.architecture import inflation_config
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.warm_start import starting_inflation
from torch import nn


def trained(config, structure):
    """Of an inflation with random weights: description and tensors."""
    inflation = Inflation(config, structure)
    for parameter in inflation.parameters():
        nn.init.normal_(parameter)
    return MotionInfo(config, structure, frames=4, fps=8, width=64, height=48), dict(inflation.state_dict())


def starting(structure, path, *more):
    options = read_options(InflateOptions, ["--videos", "v", "--base", "b", "--init", str(path), *more], "inflate")
    return starting_inflation(options, inflation_config(options, options.frames, structure), structure, options.seed)


@pytest.fixture(scope="module")
def structure():
    return structure_of(tiny.tiny_unet(context=768))


def test_a_warm_start_takes_what_fits_of_a_file_of_ours_and_says_what(tmp_path, structure, caplog):
    """Tokens for another number of frames have another shape."""
    config = InflationConfig(Temporal(middle=True), mapping=Mapping(), tokens=Tokens(7))
    info, theirs = trained(config, structure)
    write_motion_file(tmp_path / "ours.safetensors", theirs, info)
    with caplog.at_level("INFO", "stillmotion"):
        started = starting(
            structure, tmp_path / "ours.safetensors", "--preset", "harivo", "--no-mapping", "--frames", "16"
        )
    ours, fresh = started.state_dict(), fresh_inflation(started.config, structure, 0).state_dict()
    assert started.config == replace(config, mapping=None, tokens=Tokens(16))
    used = {name for name in ours if name in theirs and ours[name].shape == theirs[name].shape}
    assert {name for name in ours if name not in used} == {"text.tokens.mix.weight"}
    assert all(torch.equal(tensor, theirs[name] if name in used else fresh[name]) for name, tensor in ours.items())
    attention, tokens = (sum(part in name for name in used) for part in (".attention.", ".tokens."))
    said = f"{len(used)} of {len(ours)} tensors start as in {tmp_path / 'ours.safetensors'}:"
    assert f"{said} {attention} attention, {tokens} tokens." in caplog.text
    assert "1 start new: 1 tokens." in caplog.text
    assert f"{len(theirs) - len(used)} of the {len(theirs)} tensors of" in caplog.text


@pytest.mark.parametrize("form", ["AnimateDiff", "MotionAdapter"])
def test_a_warm_start_from_another_program_computes_as_that_does(tmp_path, structure, form, caplog):
    """With its middle block, and diffusers' statistics over the whole clip; its noise schedule is pointed out."""
    scope = "frame" if form == "AnimateDiff" else "clip"
    info, theirs = trained(InflationConfig(Temporal(norm_scope=scope, middle=True)), structure)
    if form == "AnimateDiff":
        save_file(to_animatediff(info, theirs), path := tmp_path / "module.safetensors")
    else:
        config, tensors = to_motion_adapter(info, theirs)
        (path := tmp_path / "adapter").mkdir()
        (path / "config.json").write_text(json.dumps(config))
        save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    started = starting(structure, path, "--preset", "harivo", "--frames", "16", "--schedule", "scaled_linear")
    assert started.config == replace(PRESETS["harivo"](structure, 16), temporal=info.config.temporal)
    ours = started.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert "was trained on the schedule linear; --schedule is scaled_linear" in caplog.text
    caplog.clear()
    starting(structure, path, "--preset", "animatediff", "--schedule", "linear")
    assert "was trained on the schedule" not in caplog.text


def test_a_warm_start_without_anything_that_fits_is_refused(tmp_path, structure):
    info, theirs = trained(InflationConfig(Temporal()), structure)
    save_file(to_animatediff(info, theirs), tmp_path / "module.safetensors")
    with pytest.raises(ValueError, match="nothing that this run trains, as its --preset is lumiere; .* Anim.* 64 "):
        starting(structure, tmp_path / "module.safetensors", "--preset", "lumiere")
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        starting(structure, tmp_path / "nowhere.safetensors")


def test_a_module_of_another_program_in_halved_frames_says_what_is_new(tmp_path, structure, caplog):
    info, theirs = trained(InflationConfig(Temporal()), structure)
    save_file(to_animatediff(info, theirs), tmp_path / "module.safetensors")
    with caplog.at_level("INFO", "stillmotion"):
        started = starting(structure, tmp_path / "module.safetensors", "--preset", "animatediff", "--halve", "0")
    new = len(started.state_dict()) - len(theirs)
    assert started.config.resampling == Resampling((0,)) and new == 4
    assert f"{len(theirs)} attention" in caplog.text and "4 start new: 4 resampling." in caplog.text
    assert "was trained on every frame; here frames are halved after levels 0" in caplog.text


@pytest.fixture
def halved(tmp_path, structure):
    """A motion file of ours whose frames are halved after the finest level."""
    info, tensors = trained(InflationConfig(Temporal(), resampling=Resampling((0,))), structure)
    write_motion_file(tmp_path / "halved.safetensors", tensors, info)
    return tmp_path / "halved.safetensors"


def test_the_halving_of_a_file_of_ours_is_taken_over(structure, halved, caplog):
    with caplog.at_level("INFO", "stillmotion"):
        started = starting(structure, halved, "--preset", "animatediff")
    assert started.config.resampling == Resampling((0,)) and "(--halve 0), not as in the preset" in caplog.text
    assert starting(structure, halved, "--preset", "animatediff", "--halve", "0").config.resampling == Resampling((0,))


def test_another_halving_than_that_of_a_file_of_ours_is_refused(structure, halved, tmp_path):
    with pytest.raises(ValueError, match=r"--halve is nowhere, but .*halved.safetensors was trained with 0: leave"):
        starting(structure, halved, "--preset", "animatediff", "--halve", "nowhere")
    info, tensors = trained(InflationConfig(Temporal()), structure)
    write_motion_file(tmp_path / "every.safetensors", tensors, info)
    with pytest.raises(ValueError, match="--halve is 0, but .* was trained with nowhere"):
        starting(structure, tmp_path / "every.safetensors", "--preset", "animatediff", "--halve", "0")
