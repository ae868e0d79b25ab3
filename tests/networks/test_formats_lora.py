"""Motion LoRAs merged into a motion module: W + strength up down for every matrix, and what does not fit refused; and
as LoRAs of an inflation, there and back."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from diffusers import MotionAdapter
from stillmotion.networks import temporal_lora
from stillmotion.networks.config import InflationConfig, Temporal, TemporalLora
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.formats.motion_adapter import from_motion_adapter, to_motion_adapter
from stillmotion.networks.formats.motion_lora import from_motion_lora, merged, to_motion_lora
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo
from torch import nn

WIDTHS = {"down_blocks.0": 32, "down_blocks.1": 64, "up_blocks.0": 64, "up_blocks.1": 32}
MODULES = {f"{block}.motion_modules.0": width for block, width in WIDTHS.items()}
FIRST = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
)

# how AnimateDiff's files, diffusers' copies of them, and files that peft wrote name the two matrices
SCHEMES = {
    "AnimateDiff": "{m}.temporal_transformer.transformer_blocks.0.attention_blocks.{k}.processor.to_{x}_lora.{side}"
    ".weight",
    "diffusers": "unet.{m}.transformer_blocks.0.attn{k1}.to_{x}.lora.{side}.weight",
    "peft": "unet.{m}.transformer_blocks.0.attn{k1}.to_{x}.lora_{letter}.weight",
}


@pytest.fixture
def base():
    """A MotionAdapter with random weights, and the inflation that it is."""
    adapter = MotionAdapter(block_out_channels=(32, 64), motion_layers_per_block=1, use_motion_mid_block=False)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    return adapter.state_dict(), *from_motion_adapter(adapter.state_dict())


def lora(scheme="AnimateDiff", rank=4):
    """The file, and what up · down is for each matrix by diffusers' name."""
    file, deltas = {}, {}
    for (module, width), k, x in product(MODULES.items(), (0, 1), ("q", "k", "v", "out")):
        down, up = torch.randn(rank, width), torch.randn(width, rank)
        for side, letter, matrix in (("down", "A", down), ("up", "B", up)):
            name = "out.0" if (scheme == "peft" and x == "out") else x
            file[SCHEMES[scheme].format(m=module, k=k, k1=k + 1, x=name, side=side, letter=letter)] = matrix
        deltas[f"{module}.transformer_blocks.0.attn{k + 1}.to_{'out.0' if x == 'out' else x}.weight"] = up @ down
    return file, deltas


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_matrix_gets_its_own_change_and_nothing_else_changes(base, scheme, strength):
    theirs, info, ours = base
    file, deltas = lora(scheme)
    _, changed = to_motion_adapter(info, merged(info, ours, file, strength))
    for name, tensor in theirs.items():
        expected = tensor + strength * deltas.pop(name) if name in deltas else tensor
        torch.testing.assert_close(changed[name], expected, rtol=1e-5, atol=1e-5)
    assert not deltas


def test_strength_zero_and_the_tensors_that_were_given_are_unchanged(base):
    _, info, ours = base
    before = {name: tensor.clone() for name, tensor in ours.items()}
    still = merged(info, ours, lora()[0], 0.0)
    merged(info, ours, lora()[0], 1.0)
    assert all(torch.equal(before[name], still[name]) and torch.equal(before[name], ours[name]) for name in before)


def test_half_precision_stays(base):
    _, info, ours = base
    halves = {name: tensor.half() for name, tensor in ours.items()}
    assert {tensor.dtype for tensor in merged(info, halves, lora()[0]).values()} == {torch.float16}


MID = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
DAMAGE = {
    "no LoRA": ({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 32)}, "is no motion LoRA"),
    "half of a pair": ({f"{FIRST}.down.weight": torch.zeros(4, 32)}, "two matrices for to_q"),
    "two ranks": ({f"{FIRST}.down.weight": torch.ones(4, 32), f"{FIRST}.up.weight": torch.ones(32, 5)}, "to_q"),
    "another width": ({f"{FIRST}.down.weight": torch.ones(4, 64), f"{FIRST}.up.weight": torch.ones(64, 4)}, "64"),
    "numbers": ({f"{FIRST}.down.weight": torch.tensor(1.0), f"{FIRST}.up.weight": torch.tensor(1.0)}, "to_q"),
    "something else": ({f"{FIRST}.alpha": torch.tensor(1.0)}, "alpha, which no motion LoRA"),
    "a middle block": ({f"{MID}.down.weight": torch.ones(4, 64), f"{MID}.up.weight": torch.ones(64, 4)}, "mid_block"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_does_not_fit_is_named(base, kind):
    file, sentence = DAMAGE[kind]
    _, info, ours = base
    with pytest.raises(ValueError, match=sentence):
        merged(info, ours, file)


def ours(middle, ranks=None):
    """An inflation's LoRAs on a module of that shape."""
    config = InflationConfig(temporal_lora=TemporalLora(4, middle=middle))
    inflation = Inflation(config, sd15_like([32, 64], [1, 1]))
    for parameter in inflation.parameters():
        nn.init.normal_(parameter)
    return MotionInfo(config, inflation.structure), inflation.state_dict()


@pytest.mark.parametrize("middle", [False, True])
def test_loras_of_an_inflation_go_out_and_come_back(middle):
    info, tensors = ours(middle)
    file = to_motion_lora(info, tensors)
    assert {name.partition(".motion_modules")[0] for name in file} == {*WIDTHS, *(["mid_block"] if middle else [])}
    assert f"{FIRST}.down.weight" in file and len(file) == 2 * 2 * 4 * (7 if middle else 6)
    found, back = from_motion_lora(file)
    assert (found.config, found.structure) == (info.config, info.structure)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in back)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_motion_lora_comes_in_and_changes_what_it_changed(base, scheme):
    _, info, module = base
    file, _ = lora(scheme)
    _, tensors = from_motion_lora(file)
    changed = dict(module)
    for change in temporal_lora.changes(tensors):
        rows = slice(change.start, change.start + change.rows)
        changed[change.parameter] = changed[change.parameter].clone()
        changed[change.parameter][rows] += 0.5 * change.up @ change.down
    expected = merged(info, module, file, 0.5)
    for name in module:
        torch.testing.assert_close(changed[name], expected[name], rtol=1e-5, atol=1e-5)


def test_what_a_motion_lora_does_not_change_is_zero_and_lower_ranks_are_filled_up():
    file, _ = lora()
    few = {name: tensor for name, tensor in file.items() if ".to_k_" in name}
    few[f"{FIRST.replace('to_q', 'to_k')}.down.weight"] = torch.randn(2, 32)
    few[f"{FIRST.replace('to_q', 'to_k')}.up.weight"] = torch.randn(32, 2)
    info, tensors = from_motion_lora(few)
    assert info.config.temporal_lora.rank == 4
    changed = [name for name, tensor in tensors.items() if tensor.any()]
    assert len(changed) == len(few) and all(".k." in name for name in changed)
    first = "input_blocks.1.1.temporal_lora.attention.0.k"
    product = tensors[f"{first}.up.weight"] @ tensors[f"{first}.down.weight"]
    given = few[f"{FIRST.replace('to_q', 'to_k')}.up.weight"] @ few[f"{FIRST.replace('to_q', 'to_k')}.down.weight"]
    torch.testing.assert_close(product, given)


def test_what_is_no_motion_lora_for_sd15_is_said():
    file, _ = lora()
    with pytest.raises(ValueError, match="does not change every level on the way down"):
        from_motion_lora({name: t for name, t in file.items() if not name.startswith("down_blocks.0")})
    with pytest.raises(ValueError, match="changes up_blocks.7.motion_modules.0, which no U-Net like"):
        from_motion_lora({name.replace("up_blocks.1", "up_blocks.7"): t for name, t in file.items()})
    wide = {name: t.repeat(1, 2) if "down.weight" in name else t.repeat(2, 1) for name, t in file.items()}
    with pytest.raises(ValueError, match="by another number of channels"):
        from_motion_lora({name: (wide if name.startswith("up_blocks.1") else file)[name] for name in file})
    info, tensors = ours(False)
    for config, said in (
        (InflationConfig(Temporal()), "holds no temporal LoRA that could become one"),
        (InflationConfig(temporal_lora=TemporalLora(levels=(("stacked",),))), "it holds stacked"),
    ):
        with pytest.raises(ValueError, match=said):
            to_motion_lora(replace(info, config=config), tensors)
