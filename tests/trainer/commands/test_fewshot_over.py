"""`fewshot --over`: a motion learnt on top of a motion model, which stays as it is."""

import copy
import json
import logging
import shutil
from dataclasses import replace

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal, TemporalLora
from stillmotion.networks.formats.animatediff import from_animatediff, to_animatediff
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, read_motion_file, write_motion_file
from stillmotion.networks.tensor_file import hash_of
from stillmotion.trainer.base.ground import read_ground
from stillmotion.trainer.base.ground_places import ground_places, grounds_for
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.base.load import load_base
from stillmotion.trainer.cli import main
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.over import ground_of, tell_of_grounds, with_defaults, with_ground

SMALL = sd15_like([32, 64], [1, 1])
MOVES = "--size 64x48 --frames 3 --steps 4 --save-every 2 --preview-every none --ema none"
OVER = InflationConfig(
    recurrence=Recurrence(), queries=Queries(16), temporal_lora=TemporalLora(16, (("attention",),), middle=True)
)


def random(config, structure=SMALL, seed=0):
    inflation = fresh_inflation(config, structure, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in inflation.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return inflation


def module(path, widths=(32, 64), seed=0):
    """A module in AnimateDiff's names, as its second version with a middle block."""
    config, structure = InflationConfig(Temporal(middle=True)), sd15_like(list(widths), [1] * len(widths))
    tensors = random(config, structure, seed).state_dict()
    save_file(to_animatediff(MotionInfo(config, structure, positions=24), tensors), path)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """On the CPU, on a machine without ComfyUI and without a cache of models."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("stillmotion.trainer.run.over.find_comfyuis", list)


def fewshot(place, output, *more, over="mm.safetensors"):
    AcceleratorState._reset_state(True)
    return main(tiny.words(place, "fewshot", output, *MOVES.split(), "--over", str(place / over), *more))


@pytest.fixture(scope="module")
def whole(place):
    """The folder of a finished run on top of an AnimateDiff module."""
    module(place / "mm.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr("stillmotion.trainer.run.over.find_comfyuis", list)
        assert fewshot(place, "whole") == 0
    return place / "whole"


def test_the_file_holds_what_was_learnt_on_top_alone_and_names_what_that_is(place, whole):
    info, tensors = read_motion_file(whole / "whole.safetensors", fits=structure_of(tiny.tiny_unet(context=768)))
    ground_info, ground = from_animatediff(load_file(place / "mm.safetensors"))
    assert info.config == OVER and info.schedule == ground_info.schedule == "linear"
    assert not tensors.keys() & ground.keys()
    assert (info.over.name, info.over.sha256, info.over.family) == ("mm.safetensors", hash_of(ground), "sd15")
    assert str(place) not in json.dumps(info.options) and info.options["temporal_lora"] == 16


def test_every_tensor_moves(whole):
    info, tensors = read_motion_file(whole / "whole.safetensors")
    fresh = fresh_inflation(info.config, info.structure, 0).state_dict()
    assert [name for name in fresh if torch.equal(tensors[name], fresh[name])] == []


def test_a_resumed_run_makes_the_same_file(place, whole):
    shutil.copytree(whole, place / "half")
    for file in ("whole.safetensors", "saves/state-000004.pt", "saves/whole-000004.safetensors"):
        (place / "half" / file).unlink()
    assert fewshot(place, "half", "--resume") == 0
    ours, theirs = load_file(place / "half/half.safetensors"), load_file(whole / "whole.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_ground_cannot_be_put_under_a_run(place, whole, capsys):
    module(place / "other.safetensors", seed=1)
    (whole / "whole.safetensors").rename(place / "kept.safetensors")
    try:
        assert fewshot(place, "whole", "--resume", over="other.safetensors") == 2
    finally:
        (place / "kept.safetensors").rename(whole / "whole.safetensors")
    assert "--over is a motion model with the hash" in capsys.readouterr().err


GROUNDS = {
    "AnimateDiff": InflationConfig(Temporal(middle=True)),
    "MotionAdapter": InflationConfig(Temporal(norm_scope="clip")),
    "space-time": InflationConfig(Temporal(levels=(("factorised",), ("stacked",)), middle=True)),
    "few-shot": InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(3)),
    "few-shot in full": InflationConfig(Temporal(), queries=Queries(None)),
}


def on(ground, seed=0):
    learnt = InflationConfig(
        recurrence=Recurrence(), queries=Queries(2), temporal_lora=TemporalLora.on(ground.config, 2)
    )
    return fresh_inflation(learnt, ground.structure, seed)


@pytest.mark.parametrize("name", GROUNDS)
def test_at_step_0_it_is_the_ground_bit_for_bit_and_training_leaves_that_as_it_was(name):
    unet = tiny.tiny_unet()
    ground = random(GROUNDS[name], structure_of(unet))
    before = {name: tensor.clone() for name, tensor in ground.state_dict().items()}
    rows = torch.randn(4, 4, 6, 5), torch.full((4,), 300), torch.randn(4, 5, 16)
    with torch.no_grad():
        alone = InflatedUNet(copy.deepcopy(unet), copy.deepcopy(ground))(*rows, Clip.of(4))
        still = InflatedUNet(copy.deepcopy(unet))(*rows, Clip.of(4))
    video = InflatedUNet(unet, on(ground), ground=ground, checkpointing=True)
    with torch.no_grad():
        assert torch.equal(video(*rows, Clip.of(4)), alone) and not torch.equal(alone, still)
    training = tiny.tiny_training(model=video, ema=None)
    tiny.run_steps(training, range(1, 4))
    assert tiny.without_gradient(training) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in ground.state_dict().items())
    with torch.no_grad():
        assert (video(*rows, Clip.of(4)) - alone).abs().max() > 1e-4


@torch.no_grad()
def test_clips_of_it_are_sampled_on_top_of_its_ground_and_not_without(place, whole):
    base, file = load_base(place / "base"), whole / "whole.safetensors"
    with pytest.raises(ValueError, match="was learnt on top of mm.safetensors.*: name that file with --over"):
        load_motion(base, file)
    base = with_ground(base, ground := read_ground(place / "mm.safetensors"))
    info, tensors = read_motion_file(file)
    inflation = Inflation(info.config, info.structure)
    inflation.load_state_dict(tensors)
    rows = torch.randn(3, 4, 6, 8), torch.full((3,), 300), torch.randn(3, 5, 768)
    sampled = load_motion(base, file)(*rows, Clip.of(3))
    expected = InflatedUNet(base.unet, inflation, ground=ground.inflation)(*rows, Clip.of(3))
    assert torch.equal(sampled, expected) and base.schedule == "linear"


def refused(place, capsys, *more, **over):
    assert fewshot(place, "none", *more, **over) == 2
    return capsys.readouterr().err


def test_what_can_be_no_ground_is_said_in_one_line(place, whole, capsys):
    module(place / "wide.safetensors", (32, 32))
    assert "wide.safetensors was made for a U-Net with other layers" in refused(place, capsys, over="wide.safetensors")
    shutil.copy(whole / "whole.safetensors", place / "learnt.safetensors")
    assert "learnt.safetensors was learnt on top of mm.safetensors, and is no whole motion by itself" in refused(
        place, capsys, over="learnt.safetensors"
    )
    assert "there is no motion model" in refused(place, capsys, over="nowhere.safetensors")
    off = "--queries none --recurrence none --temporal-lora none".split()
    assert "nothing would train: leave one of --temporal-lora" in refused(place, capsys, *off)
    AcceleratorState._reset_state(True)
    assert main(tiny.words(place, "fewshot", "none", "--temporal-lora", "4")) == 2
    assert "name it with --over" in capsys.readouterr().err


def test_loras_on_attentions_that_a_ground_has_not_are_refused(place, capsys):
    config = InflationConfig(Temporal(levels=(("convolution",),)))
    write_motion_file(place / "conv.safetensors", random(config).state_dict(), MotionInfo(config, SMALL))
    said = refused(place, capsys, "--temporal-lora", "4", over="conv.safetensors")
    assert "conv.safetensors has none: leave it out" in said


def test_a_motion_model_that_comfyui_has_is_named_and_found_by_its_name(place, whole, monkeypatch, tmp_path, caplog):
    folder = tmp_path / "ComfyUI/models/animatediff_models"
    folder.mkdir(parents=True)
    shutil.copy(place / "mm.safetensors", folder / "v2.safetensors")
    module(folder / "a wide one.safetensors", (32, 32))
    (folder / "a note.safetensors").write_bytes(b"no tensors")
    monkeypatch.setattr("stillmotion.trainer.run.over.find_comfyuis", lambda: [tmp_path / "ComfyUI"])
    options = FewShotOptions(videos=place / "clips", over="v2.safetensors")
    with caplog.at_level(logging.INFO, logger="stillmotion"):
        tell_of_grounds(load_base(place / "base"))
        found = with_defaults(options, ground_of(options))
    assert "v2.safetensors lies on this machine: with --over v2.safetensors the motion is learnt" in caplog.text
    assert f"On top of {folder / 'v2.safetensors'}: AnimateDiff v2" in caplog.text
    assert "--frame-attention is off" in caplog.text and "--temporal-lora is 16" in caplog.text
    assert (found.over, found.temporal_lora, found.frame_attention) == (folder / "v2.safetensors", 16, False)


def test_an_adapter_in_the_cache_without_its_weights_is_passed_over(tmp_path):
    adapter = tmp_path / "models--somebody--adapter/snapshots/1"
    adapter.mkdir(parents=True)
    (adapter / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    places = list(ground_places([], tmp_path))
    assert [place.name for place in places] == ["somebody/adapter"] and not list(grounds_for(SMALL, iter(places)))


def test_what_somebody_sets_stays_and_a_ground_without_attentions_gets_no_lora(place, whole):
    ground = read_ground(place / "mm.safetensors")
    set_by_hand = FewShotOptions(videos=place, over=ground.path, temporal_lora=4, frame_attention=True)
    found = with_defaults(set_by_hand, ground)
    assert (found.temporal_lora, found.frame_attention) == (4, True)
    off = with_defaults(FewShotOptions(videos=place, over=ground.path, temporal_lora=None), ground)
    assert off.temporal_lora is None
    config = InflationConfig(Temporal(levels=(("convolution",),)))
    other = replace(ground, info=replace(ground.info, config=config))
    found = with_defaults(FewShotOptions(videos=place, over=ground.path), other)
    assert (found.temporal_lora, found.frame_attention) == (None, False)
