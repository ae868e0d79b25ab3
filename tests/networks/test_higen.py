"""HiGen's transformer over frames against its formula, and where it is in SD1.5."""

from itertools import product

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.higen import FrameTransformer
from stillmotion.networks.inflation import Attached, Inflation, after_layer
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F

LEVELS = [Level(width, (d, d), (d, d, d)) for width, d in [(320, 1), (640, 1), (1280, 1), (1280, 0)]]
SD15 = Structure(tuple(LEVELS), 1, 768)
TTRANS = Temporal(levels=(("transformer",),), middle=True)


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def layer_norm(norm, y):
    return F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)


def linear(layer, y):
    return y @ layer.weight.T + layer.bias


def attention(layer, y):
    """What self-attention without positions adds to the frames of one pixel, `(frames, channels)`, head by head."""
    normed, d = layer_norm(layer.norm, y), y.shape[1] // layer.heads
    q, k, v = ((normed @ w.T).split(d, dim=-1) for w in layer.qkv.weight.chunk(3))
    heads = [torch.softmax(q @ k.T / d**0.5, dim=-1) @ v for q, k, v in zip(q, k, v)]
    return linear(layer.out, torch.cat(heads, dim=-1))


def ttrans(block, y):
    """1x1, [LN, attention, +] twice, [LN, GEGLU, +], 1x1 of the normed frames of one pixel, `(frames, channels)`."""
    y = linear(block.proj_in, y)
    for layer in block.attentions:
        y = y + attention(layer, y)
    value, gate = linear(block.feed_forward.expand, layer_norm(block.feed_forward.norm, y)).chunk(2, dim=-1)
    y = y + linear(block.feed_forward.out, value * F.gelu(gate))
    return linear(block.proj_out, y)


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("frames", [2, 5])
def test_the_block_equals_its_formula_pixel_by_pixel(scope, frames):
    block = randomised(FrameTransformer(64, 24, 3, False, scope))
    assert len(block.attentions) == 2
    x = torch.randn(2 * frames, 64, 3, 2, dtype=torch.float64) + torch.arange(2 * frames).view(-1, 1, 1, 1)
    got = block(x, frames).unflatten(0, (2, frames))
    for b, clip in enumerate(x.unflatten(0, (2, frames))):
        whole = clip.transpose(0, 1)[None] if scope == "clip" else clip
        normed = F.group_norm(whole, 32, block.norm.weight, block.norm.bias, eps=1e-6)
        normed = normed[0].transpose(0, 1) if scope == "clip" else normed
        for i, j in product(range(3), range(2)):
            torch.testing.assert_close(got[b, :, :, i, j], ttrans(block, normed[:, :, i, j]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_a_new_block_adds_exactly_nothing(dtype, scope):
    x = torch.randn(2 * 3, 32, 3, 2, dtype=dtype)
    assert torch.equal(FrameTransformer(32, 64, 1, False, scope).to(dtype)(x, 3), torch.zeros_like(x))


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_it_does_not_know_the_order_of_frames(scope):
    block, x = randomised(FrameTransformer(32, 64, 2, False, scope)), torch.randn(5, 32, 3, 2, dtype=torch.float64)
    shuffled, added = torch.tensor([3, 0, 4, 1, 2]), block(x, 5)
    torch.testing.assert_close(block(x[shuffled], 5), added[shuffled])
    others = torch.cat([x[:1], torch.randn_like(x[1:])])
    assert (block(others, 5)[0] - added[0]).abs().max() > 0.1, "a frame does see the others"


def test_a_clip_of_one_frame_is_left_as_it_is_whatever_was_learnt():
    slim = Structure((Level(32, (1,), (1,)),), middle=1, context=16)
    inflation = randomised(Inflation(InflationConfig(temporal=TTRANS), slim))
    x = torch.randn(3, 32, 3, 2, dtype=torch.float64)
    for site in ("input_blocks.0.0", "input_blocks.1.1"):
        assert inflation.at(site, "transformer")
        assert torch.equal(after_layer(x, [Attached(inflation)], site, Clip.of(1)), x)
        assert not torch.equal(after_layer(x, [Attached(inflation)], site, Clip.of(3)), x)


def size(c, inner):
    """Norm 2 C and projections, two attentions of 4 I², a feed-forward of 12 I², with their biases and norms."""
    projections = 2 * c + (c * inner + inner) + (inner * c + c)
    return projections + 2 * (4 * inner**2 + 3 * inner) + 12 * inner**2 + 11 * inner


def test_on_sd15_it_is_after_the_first_convolution_and_16_transformers():
    """278.4 million parameters, as in HiGen's release; heads are 64 wide, and 512 channels inside the first block."""
    with torch.device("meta"):
        inflation = Inflation(InflationConfig(temporal=TTRANS), SD15)
    names = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
    places = ["input_blocks.0.0", *names, *(f"output_blocks.{i}.1" for i in range(3, 12))]
    assert [name for name, _ in inflation.parts()] == [f"{place}.transformer" for place in places]
    inner = [512] + 2 * [320] + 2 * [640] + 3 * [1280] + 3 * [1280] + 3 * [640] + 3 * [320]
    modules = [module for _, module in inflation.parts()]
    assert [module.proj_in.out_features for module in modules] == inner
    assert [module.attentions[0].heads for module in modules] == [i // 64 for i in inner]
    count = sum(p.numel() for p in inflation.parameters())
    assert count == size(320, 512) + sum(size(c, c) for c in inner[1:])
    assert round(count / 1e6, 1) == 278.4
