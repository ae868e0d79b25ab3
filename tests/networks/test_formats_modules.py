"""Other programs' motion modules: exact round trips, what kind a file is, and each kind of damage in one sentence."""

import json

import pytest
import safetensors.torch
import torch
from diffusers import MotionAdapter
from stillmotion.networks.config import CrossFrames, InflationConfig, Temporal
from stillmotion.networks.formats.animatediff import from_animatediff, to_animatediff, version
from stillmotion.networks.formats.files import from_tensors, read_any_motion_file, read_motion_adapter
from stillmotion.networks.formats.modules import module_tensors, sd15_like
from stillmotion.networks.formats.motion_adapter import from_motion_adapter, to_motion_adapter
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionFileError, MotionInfo, read_motion_file, write_motion_file
from stillmotion.networks.sites import Level, Structure
from torch import nn

SMALL = sd15_like([32, 64], [1, 1])
MODULE = "down_blocks.0.motion_modules.0"


def positions(length, channels):
    """AnimateDiff's table as its paper's source has it, number by number: sine on even, cosine on odd channels."""
    exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None].float()


def motion_module(channels, length):
    """One motion module in AnimateDiff's names, random."""
    c, block = channels, "temporal_transformer.transformer_blocks.0"
    shapes = {
        "temporal_transformer.norm": (c,),
        "temporal_transformer.proj_in": (c, c),
        f"{block}.norms.0": (c,),
        f"{block}.norms.1": (c,),
        f"{block}.ff.net.0.proj": (8 * c, c),
        f"{block}.ff.net.2": (c, 4 * c),
        f"{block}.ff_norm": (c,),
        "temporal_transformer.proj_out": (c, c),
    }
    shapes |= {f"{block}.attention_blocks.{k}.to_out.0": (c, c) for k in (0, 1)}
    made = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    made |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    for k in (0, 1):
        made |= {f"{block}.attention_blocks.{k}.to_{letter}.weight": torch.randn(c, c) for letter in "qkv"}
        if length:
            made[f"{block}.attention_blocks.{k}.pos_encoder.pe"] = positions(length, c)
    return made


def animatediff(length=32, middle=False, widths=(32, 64), units=1):
    """A file of AnimateDiff's, of levels of these widths."""
    levels = len(widths)
    places = {f"down_blocks.{i}.motion_modules.{j}": w for i, w in enumerate(widths) for j in range(units)}
    places |= {
        f"up_blocks.{levels - 1 - i}.motion_modules.{j}": w for i, w in enumerate(widths) for j in range(units + 1)
    }
    places |= {"mid_block.motion_modules.0": widths[-1]} if middle else {}
    return {f"{p}.{name}": t for p, w in places.items() for name, t in motion_module(w, length).items()}


def adapter(**config):
    made = MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1, **config)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def close(a, b):
    """Keys and what was learnt are equal; the positions are computed again, and may differ in the last bit."""
    tables = {name for name in a if name.endswith("pe")}
    assert all(torch.allclose(a[name].float(), b[name].float(), rtol=0, atol=1e-5) for name in tables)
    return equal({n: t for n, t in a.items() if n not in tables}, {n: t for n, t in b.items() if n not in tables})


VERSIONS = {
    "AnimateDiff v1": {"length": 24},
    "AnimateDiff v2": {"length": 32, "middle": True},
    "AnimateDiff v3": {"length": 32},
    "AnimateLCM": {"length": None},
    "AnimateDiff for 64 frames": {"length": 64},
}


@pytest.mark.parametrize("name", VERSIONS)
def test_what_a_file_is(name):
    info, _ = from_tensors(animatediff(**VERSIONS[name]))
    assert version(info) == name
    assert info.structure == SMALL and info.family == "sd15"
    assert (info.schedule, info.prediction) == ("linear", "epsilon")
    assert info.config == InflationConfig(temporal=Temporal(8, True, "frame", name == "AnimateDiff v2"))


@pytest.mark.parametrize("name", VERSIONS)
def test_animatediff_comes_back_exact(tmp_path, name):
    theirs = animatediff(**VERSIONS[name])
    info, ours = from_animatediff(theirs)
    write_motion_file(tmp_path / "ours.safetensors", ours, info)
    back = to_animatediff(*read_motion_file(tmp_path / "ours.safetensors"))
    assert back.keys() == theirs.keys()
    assert close(theirs, back)


def test_a_file_in_half_precision_stays_so():
    theirs = {name: tensor.half() for name, tensor in animatediff().items()}
    assert equal(to_animatediff(*from_animatediff(theirs)), theirs)


@pytest.mark.parametrize("middle", [True, False])
@pytest.mark.parametrize("length", [24, 32])
def test_a_motion_adapter_comes_back_exact(tmp_path, middle, length):
    made = adapter(use_motion_mid_block=middle, motion_max_seq_length=length)
    made.save_pretrained(tmp_path / "adapter")
    info, ours = read_motion_adapter(tmp_path / "adapter")
    assert info.config.temporal == Temporal(8, True, "clip", middle) and info.schedule == "linear"
    config, back = to_motion_adapter(info, ours)
    assert equal(back, made.state_dict())
    assert config.items() <= json.loads((tmp_path / "adapter/config.json").read_text()).items()


def test_diffusers_own_names_are_those_that_animatediffs_become():
    """One file through diffusers' loader and through ours."""
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    theirs = animatediff(middle=True)
    _, ours = from_animatediff(theirs)
    converted = convert_animatediff_checkpoint_to_diffusers(theirs)
    assert equal(from_motion_adapter(converted)[1], ours)


def test_sd15_has_the_modules_of_the_published_files():
    """20 modules of 26 learned tensors and 417.14 M numbers, 21 and 453.21 M with the middle one."""
    sd15 = sd15_like([320, 640, 1280, 1280], [2] * 4)
    for middle, modules, millions in ((False, 20, 417.14), (True, 21, 453.21)):
        config = InflationConfig(temporal=Temporal(middle=middle))
        with torch.device("meta"):
            ours = Inflation(config, sd15).state_dict()
            theirs = to_animatediff(MotionInfo(config, sd15, positions=None), ours)
        assert len(theirs) == 26 * modules
        assert round(sum(tensor.numel() for tensor in theirs.values()) / 1e6, 2) == millions
        assert theirs["up_blocks.3.motion_modules.2.temporal_transformer.proj_in.weight"].shape == (320, 320)


@pytest.mark.parametrize("prefix", ["module.", "unet.", "model.diffusion_model."])
def test_what_stands_around_the_modules_is_left_out(prefix):
    plain = animatediff()
    whole = {prefix + name: tensor for name, tensor in plain.items()}
    whole |= {
        prefix + "conv_in.weight": torch.zeros(3),
        prefix + "down_blocks.0.resnets.0.conv1.weight": torch.zeros(3),
    }
    (info, found), (plain_info, expected) = from_tensors(whole), from_tensors(plain)
    assert info == plain_info and equal(found, expected)


def without(theirs, name):
    return {n: t for n, t in theirs.items() if n != name}


NORM = f"{MODULE}.temporal_transformer.norm.weight"
PROJ = f"{MODULE}.temporal_transformer.proj_in.weight"
TABLE = f"{MODULE}.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
LORA = f"{MODULE}.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight"

SDXL = {
    f"down_blocks.{i}.motion_modules.0.temporal_transformer.norm.weight": torch.ones(width)
    for i, width in enumerate((320, 640, 1280))
}
CAMERA = f"{MODULE}.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.qkv_merge.weight"
DAMAGE = {
    "a tensor is missing": (lambda t: without(t, PROJ), f"lacks 1 of its 156 tensors, first {PROJ}"),
    "the norm is missing": (lambda t: without(t, NORM), f"lacks {NORM}"),
    "a module is missing": (lambda t: {n: v for n, v in t.items() if "up_blocks.1.motion_modules.1" not in n}, "lacks"),
    "a shape is wrong": (lambda t: t | {PROJ: torch.zeros(32, 16)}, r"with shape \(32, 16\); it should be \(32, 32\)"),
    "a convolution": (lambda t: t | {PROJ: torch.zeros(32, 32, 1, 1)}, r"\(32, 32, 1, 1\); it should be \(32, 32\)"),
    "another tensor": (
        lambda t: t | {f"{MODULE}.extra.weight": torch.zeros(2)},
        "extra.weight, which no motion module",
    ),
    "other positions": (lambda t: t | {TABLE: t[TABLE].flip(1)}, "are not the sines and cosines"),
    "learned positions": (lambda t: t | {TABLE: t[TABLE] + 0.01}, "are not the sines and cosines"),
    "positions of another width": (lambda t: t | {TABLE: torch.zeros(1, 32, 33)}, "are not the sines and cosines"),
    "positions of two lengths": (lambda t: t | {TABLE: positions(24, 32)}, r"for \[24, 32\] frames"),
    "whole numbers": (lambda t: t | {PROJ: torch.zeros(32, 32, dtype=torch.int64)}, "int64|I64"),
    "not a number": (lambda t: t | {PROJ: torch.full((32, 32), float("nan"))}, "NaN"),
    "a motion LoRA": (lambda t: {LORA: torch.zeros(4, 32)}, "is a motion LoRA: .* convert --lora"),
    "SDXL": (lambda t: SDXL, "motion module for SDXL; only those for SD1.5"),
    "an image encoder": (lambda t: t | {"img_encoder.0.weight": torch.zeros(2)}, "image encoder .AnimateLCM-I2V"),
    "PIA": (lambda t: t | {"module.conv_in.weight": torch.zeros(32, 9, 3, 3)}, "takes 9 channels"),
    "CameraCtrl": (lambda t: t | {CAMERA: torch.zeros(32, 32)}, "qkv_merge.weight, which no motion module"),
    "SparseCtrl": (lambda t: {n: v for n, v in t.items() if n.startswith("down")}, "lacks 104 of its 156 tensors"),
    "twice": (lambda t: t | {"ema." + PROJ: t[PROJ]}, "holds its motion modules twice"),
    "40 channels": (lambda t: animatediff(widths=(40, 64)), r"multiple of 32 channels; this U-Net has a level of 40"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_in_one_sentence(tmp_path, kind):
    damage, sentence = DAMAGE[kind]
    path = tmp_path / "damaged.safetensors"
    safetensors.torch.save_file({name: t.clone() for name, t in damage(animatediff()).items()}, path)
    with pytest.raises(MotionFileError, match=sentence) as caught:
        read_any_motion_file(path)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)


def test_files_of_all_kinds_are_told_apart(tmp_path):
    theirs, path = animatediff(), tmp_path / "file.safetensors"
    safetensors.torch.save_file(theirs, path)
    assert read_any_motion_file(path)[0].config.temporal.norm_scope == "frame"
    safetensors.torch.save_file(adapter().state_dict(), path)
    assert read_any_motion_file(path)[0].config.temporal.norm_scope == "clip"
    info, ours = from_animatediff(theirs)
    write_motion_file(path, ours, info)
    assert read_any_motion_file(path)[0] == info
    safetensors.torch.save_file({"conv_in.weight": torch.zeros(3)}, path)
    with pytest.raises(MotionFileError, match="not a motion file"):
        read_any_motion_file(path)
    with pytest.raises(FileNotFoundError):
        read_any_motion_file(tmp_path / "nothing.safetensors")


def test_a_pickled_file_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "mm_sd_v15_v2.ckpt"
    torch.save(animatediff(), path)
    with pytest.raises(MotionFileError, match=f"trainer convert --input {path} --output .*mm_sd_v15_v2.safetensors"):
        read_any_motion_file(path)


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"motion_norm_num_groups": 16}, "motion_norm_num_groups 16; its tensors make it 32"),
        ({"block_out_channels": [64, 32]}, "block_out_channels"),
        ({"conv_in_channels": 9}, "conv_in_channels 9"),
        ({"motion_num_attention_heads": [8, 4]}, "motion_num_attention_heads"),
        ({"motion_num_attention_heads": "8"}, "heads"),
        ({"_class_name": "UNet2DConditionModel"}, "does not describe a MotionAdapter"),
    ],
    ids=str,
)
def test_a_configuration_of_another_adapter_is_refused(tmp_path, changed, sentence):
    adapter().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(MotionFileError, match=sentence):
        read_motion_adapter(tmp_path)


OTHER = Structure((Level(32, (1,), (1, 1)), Level(64, (1,), (1, 1))), 1, 768)


@pytest.mark.parametrize(
    "config, structure, sentence",
    [
        (InflationConfig(Temporal(), CrossFrames()), SMALL, "it holds frame_attention"),
        (InflationConfig(), SMALL, "no temporal blocks"),
        (InflationConfig(Temporal(positional=False)), SMALL, "no positions"),
        (InflationConfig(Temporal()), OTHER, "other layers than SD1.5's"),
    ],
)
@pytest.mark.parametrize("write", [to_animatediff, to_motion_adapter])
def test_what_other_programs_cannot_hold_is_named(write, config, structure, sentence):
    with pytest.raises(ValueError, match=sentence):
        write(MotionInfo(config, structure), Inflation(config, structure).state_dict())


def test_positions_are_written_for_all_frames_it_was_trained_on():
    config = InflationConfig(Temporal())
    made = to_animatediff(MotionInfo(config, SMALL, frames=48), Inflation(config, SMALL).state_dict())
    assert {t.shape[1] for name, t in made.items() if name.endswith(".pe")} == {48}


def test_only_motion_modules_are_taken_from_a_checkpoint():
    assert module_tensors({"a.mid_block.motion_modules.0.x": torch.zeros(1), "mid_block.x": torch.zeros(1)}).keys() == {
        "mid_block.motion_modules.0.x"
    }
