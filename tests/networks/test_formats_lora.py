"""Motion LoRAs merged into a motion module: W + strength up down for every matrix, and what does not fit refused."""

from itertools import product

import pytest
import torch
from diffusers import MotionAdapter
from stillmotion.networks.formats.motion_adapter import from_motion_adapter, to_motion_adapter
from stillmotion.networks.formats.motion_lora import merged
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
