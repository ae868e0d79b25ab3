"""The whole `decouple` command on a base and clips of the smallest size."""

import json
import logging
import shutil

import numpy as np
import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file
from stillmotion.networks.motion_file import read_motion_file
from stillmotion.networks.presets import PRESETS, with_guidance
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.base.ldm_names import inverse, layer_names, rename
from stillmotion.trainer.base.load import load_base
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from transformers import Dinov2Config, Dinov2Model

NUMBERS = "--size 64x48 --frames 4 --steps 4 --warm-up 1 --learning-rate 1e-3 --ema 0.9 --save-every 2"
QUIET = "--preview-every none --held-out-every 9"
PICTURES = "--accumulation 4 --images"


@pytest.fixture(scope="module")
def place(place):
    """A base, clips, and captioned pictures."""
    for number in range(3):
        (place / "pictures").mkdir(exist_ok=True)
        picture = np.full((48, 64, 3), 60 * number + 30, np.uint8)
        Image.fromarray(picture).save(place / f"pictures/{number}.png")
        (place / f"pictures/{number}.txt").write_text(f"a grey, number {number}")
    return place


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Without the estimate, which takes longer than so small a run; that of `whole` has it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)


def run(place, output, *more, quiet=True):
    AcceleratorState._reset_state(True)
    words = [*NUMBERS.split(), *(QUIET.split() if quiet else ()), *more]
    return main(tiny.words(place, "decouple", output, *words))


@pytest.fixture(scope="module")
def whole(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert run(place, "whole", *"--preview-every 4 --preview-steps 2 --held-out 1".split(), quiet=False) == 0
    return place / "whole"


def test_the_motion_file_has_all_of_higen_and_the_factors_of_the_set(whole):
    structure = structure_of(tiny.tiny_unet(context=768))
    info, tensors = read_motion_file(whole / "whole.safetensors", fits=structure)
    assert info.config == with_guidance(PRESETS["higen"](structure, 4), 4)
    assert set(info.factors) == {"motion", "appearance"}
    low, middle, high = info.factors["motion"]
    assert 0 < low <= middle <= high
    assert (info.prediction, info.zero_snr) == ("epsilon", False)
    fresh = fresh_inflation(info.config, structure, 0).state_dict()
    assert all(not torch.equal(tensors[name], fresh[name]) for name in fresh)


def test_previews_are_the_still_beside_clips_of_three_motions(whole):
    preview = Image.open(whole / "previews/step-000004.webp")
    assert (preview.n_frames, preview.size) == (4, (4 * 64, 48))
    lines = read_log(whole / "log.jsonl")
    assert set(lines[-1]["moved"]) == {"convolution", "transformer", "prior", "motion", "appearance"}
    assert "held_out_loss" in json.dumps(lines)


LORA = ["--spatial", "lora", "--steps", "2", *PICTURES.split()]


@pytest.fixture(scope="module")
def through(place):
    """A run with a LoRA of the image model that nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(shared_path, "report_estimate", lambda *_: None)
        assert run(place, "through", *LORA, str(place / "pictures")) == 0
    return place / "through"


def test_stopped_and_resumed_gives_the_same_files(place, through):
    more = [*LORA, str(place / "pictures")]
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert run(place, "stopped", *more) == 0
    assert read_state(saved_states(place / "stopped/saves")[-1])["positions"] == [[3, 1]]
    assert run(place, "stopped", "--resume", *more) == 0
    for end in ("", "_lora"):
        ours, theirs = (load_file(place / f"{name}/{name}{end}.safetensors") for name in ("stopped", "through"))
        assert same(ours, theirs)
    lines = [line for line in read_log(through / "log.jsonl") if "loss" in line]
    for line in lines:
        assert line["loss"] == pytest.approx(0.25 * line["loss_pictures"] + 0.75 * line["loss_simple"], rel=1e-5)


def test_a_lora_of_the_image_model_is_written_in_kohyas_form(through):
    tensors = load_file(through / "through_lora.safetensors")
    layers = {name.rpartition(".lora_")[0] or name.rpartition(".alpha")[0] for name in tensors}
    attentions = [n for n, _ in tiny.tiny_unet(768).named_modules() if n.endswith(("attn1", "attn2"))]
    assert len(layers) == 4 * len(attentions) and all(name.startswith("lora_unet_") for name in layers)
    assert all(tensors[f"{name}.lora_up.weight"].any() for name in layers)
    assert tensors[f"{min(layers)}.alpha"].item() == 16 == len(tensors[f"{min(layers)}.lora_down.weight"])


@pytest.fixture
def with_schedule(place):
    """Writes a scheduler beside the base, for one test."""
    folder = place / "base/scheduler"

    def write(**config):
        DDIMScheduler(beta_schedule="scaled_linear", **config).save_pretrained(folder)

    yield write
    shutil.rmtree(folder)


def test_a_base_that_predicts_the_velocity_with_zero_terminal_snr_and_a_half_that_is_left_out_are_in_the_file(
    place, with_schedule
):
    with_schedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    more = "--steps 1 --no-motion --preview-every 1 --preview-steps 2".split()
    assert run(place, "velocity", *more, quiet=False) == 0
    info, _ = read_motion_file(place / "velocity/velocity.safetensors")
    assert (info.prediction, info.zero_snr) == ("v_prediction", True)
    assert info.config.motion is None and info.config.prior and info.config.appearance
    assert np.asarray(Image.open(place / "velocity/previews/step-000001.webp")).std() > 0


@pytest.mark.parametrize(
    "config, more, said",
    [
        ({"rescale_betas_zero_snr": True}, [], "predicts epsilon on a schedule with zero terminal SNR"),
        ({"prediction_type": "sample"}, [], "predicts sample on the schedule scaled_linear"),
        (
            {"prediction_type": "v_prediction"},
            ["--mitigation", "20"],
            "--mitigation is for models that predict epsilon",
        ),
    ],
)
def test_a_schedule_that_cannot_be_trained_on_is_refused(place, with_schedule, capsys, config, more, said):
    with_schedule(**config)
    assert run(place, "unfit", "--steps", "1", *more) == 2
    assert said in capsys.readouterr().err


def test_appearance_is_measured_by_the_image_model_that_is_given_and_clips_that_are_alike_are_told(place, caplog):
    caplog.set_level(logging.INFO, "stillmotion")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(place / "small-dino")
    assert run(place, "seen", "--steps", "1", "--features", str(place / "small-dino")) == 0
    caplog.clear()
    assert run(place, "unseen", "--steps", "1") == 0
    assert "motion factor" in caplog.text and "appearance factor hardly differs" in caplog.text
    seen, unseen = (read_motion_file(place / f"{name}/{name}.safetensors")[0] for name in ("seen", "unseen"))
    assert (seen.config.appearance.features, unseen.config.appearance.features) == ("small-dino", "latent")
    assert seen.factors["appearance"] != unseen.factors["appearance"]
    assert seen.factors["motion"] == unseen.factors["motion"]


def test_all_of_the_image_model_trains_at_a_fifth_of_the_rate_and_is_written_as_a_unet(place, caplog):
    caplog.set_level(logging.INFO, "stillmotion")
    assert run(place, "full", "--spatial", "full", "--ema", "none", "--accumulation", "4") == 0
    assert "one is of frames of the clips" in caplog.text
    base = load_base(place / "base").unet
    names = inverse(layer_names(structure_of(base)))
    before, after = rename(base.state_dict(), names), load_file(place / "full/full_unet.safetensors")
    assert before.keys() == after.keys()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    path = 1e-3 * (1 + 1 + 2 / 3 + 1 / 3)
    assert all(0 < change <= 0.2 * path * 1.01 for change in moved.values())
    assert max(moved.values()) > 0.15 * path


@pytest.mark.parametrize(
    "more, said",
    [
        (["--images", "pictures"], "--images are for the image model, which is frozen"),
        (["--no-prior", "--no-motion", "--no-appearance"], "neither the prior nor guidance would train"),
        (["--features", "nowhere"], "--features nowhere is no folder with an image model"),
        (
            ["--spatial", "lora", "--images", "nowhere"],
            "does not exist; give a folder of pictures, a table, or tar files",
        ),
        (["--spatial", "some"], "--spatial is some"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(place, capsys, more, said):
    assert run(place, "refused", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (place / "refused/log.jsonl").exists()
