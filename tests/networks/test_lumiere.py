"""Lumiere's two blocks against their formulas written out, frame by frame and pixel by pixel."""

from itertools import product

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.lumiere import AttentionInflation, ConvolutionInflation
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def normed(norm, x):
    return F.silu(F.group_norm(x, 32, norm.weight, norm.bias))


@pytest.mark.parametrize("frames", [1, 5])
def test_the_convolution_block_equals_its_formula(frames):
    """P(act(norm(Conv1d(act(norm(Conv2d(x))))))), Conv2d of each frame, Conv1d of each pixel, norms of each frame."""
    block = randomised(ConvolutionInflation(channels=6, hidden=64))
    x = torch.randn(2 * frames, 6, 3, 2, dtype=torch.float64) + torch.arange(2 * frames).view(-1, 1, 1, 1)
    got = block(x, frames).unflatten(0, (2, frames))
    taps, bias = block.over_frames.conv.weight.squeeze(-1), block.over_frames.conv.bias
    for b, clip in enumerate(x.unflatten(0, (2, frames))):
        y = normed(block.norm_pixels, F.conv2d(clip, block.over_pixels.weight, block.over_pixels.bias, padding=1))
        over_frames = torch.empty_like(y)
        for i, j in product(range(3), range(2)):
            over_frames[:, :, i, j] = F.conv1d(y[:, :, i, j].T, taps, bias, padding=1).T
        y = normed(block.norm_frames, over_frames)
        expected = torch.einsum("fchw,oc->fohw", y, block.out.weight[:, :, 0, 0]) + block.out.bias.view(-1, 1, 1)
        torch.testing.assert_close(got[b], expected)


def positions(frames, channels):
    """sin(f / 10000^(2i/C)) on channel 2i, cos on channel 2i + 1."""
    angle = torch.arange(frames).double()[:, None] / 10000 ** (torch.arange(0, channels, 2).double() / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def layer_norm(norm, y):
    return F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)


def attention(layer, y):
    """What self-attention adds to the frames of one pixel, `(frames, channels)`, head by head."""
    y = layer_norm(layer.norm, y) + positions(*y.shape)
    d = y.shape[1] // layer.heads
    q, k, v = ((y @ w.T).split(d, dim=-1) for w in layer.qkv.weight.chunk(3))
    heads = [torch.softmax(q @ k.T / d**0.5, dim=-1) @ v for q, k, v in zip(q, k, v)]
    return torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias


def feed_forward(layer, y):
    value, gate = (layer_norm(layer.norm, y) @ layer.expand.weight.T + layer.expand.bias).chunk(2, dim=-1)
    return (value * F.gelu(gate)) @ layer.out.weight.T + layer.out.bias


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_attention_block_equals_its_formula_pixel_by_pixel(frames, layers):
    """P of so many times [LN, attention, +] and [LN, GEGLU, +]; positions count the frames of the layer."""
    block = randomised(AttentionInflation(12, heads=3, layers=layers))
    assert len(block.attentions) == len(block.feed_forwards) == layers
    x = torch.randn(2 * frames, 12, 3, 2, dtype=torch.float64)
    got, clips = (t.unflatten(0, (2, frames)) for t in (block(x, frames), x))
    for b, i, j in product(range(2), range(3), range(2)):
        y = clips[b, :, :, i, j]
        for attend, feed in zip(block.attentions, block.feed_forwards):
            y = y + attention(attend, y)
            y = y + feed_forward(feed, y)
        expected = y @ block.out.weight.T + block.out.bias
        # the code keeps its positions in float32
        torch.testing.assert_close(got[b, :, :, i, j], expected, atol=1e-5, rtol=1e-5)


BLOCKS = {"convolution": lambda: ConvolutionInflation(64, 32), "attention": lambda: AttentionInflation(64, 2, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_new_block_adds_exactly_nothing(name, dtype):
    x = torch.randn(2 * 3, 64, 3, 2, dtype=dtype)
    assert torch.equal(BLOCKS[name]().to(dtype)(x, 3), torch.zeros_like(x))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_projection_alone_starts_at_zero_and_learns_first(name):
    block, (x, target) = BLOCKS[name](), torch.randn(2, 2 * 3, 64, 3, 2)
    zero = {name for name, p in block.named_parameters() if not p.any() and "norm" not in name}
    assert zero == {"out.weight", "out.bias"}
    F.mse_loss(x + block(x, 3), target).backward()
    assert {name for name, p in block.named_parameters() if p.grad.any()} == zero


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_a_convolution_block_has_thirteen_matrices():
    """9 C² over pixels, 3 C² over frames, C² to come back; then three biases and two norms."""
    c, hidden = 64, 32
    assert count(ConvolutionInflation(c, c)) == 13 * c**2 + 3 * c + 2 * 2 * c
    narrow = 9 * c * hidden + 3 * hidden**2 + hidden * c + 2 * hidden + c + 2 * 2 * hidden
    assert count(ConvolutionInflation(c, hidden)) == narrow


@pytest.mark.parametrize("layers", [1, 2])
def test_an_attention_block_has_sixteen_matrices_a_layer_and_its_projection(layers):
    """4 C² of an attention, 12 C² of a feed-forward; their biases are 10 C and their norms 4 C."""
    c = 64
    assert count(AttentionInflation(c, 2, layers)) == layers * (16 * c**2 + 14 * c) + c**2 + c


def test_narrow_halves_the_inside_at_every_site_and_layers_are_those_of_the_config():
    slim = Structure((Level(64, (1,), (1,)), Level(128, (0,), (0,))), middle=1, context=16)
    levels = (("factorised",), ("factorised", "stacked"))

    def built(**options):
        return Inflation(InflationConfig(temporal=Temporal(levels=levels, **options)), slim)

    def inside(inflation, site):
        block = inflation.at(site, "factorised")
        return block.over_pixels.out_channels, block.over_frames.conv.out_channels, block.out.in_channels

    for site, width in [("input_blocks.1.1", 64), ("output_blocks.0.0", 128)]:
        assert inside(built(), site) == (width, width, width)
        assert inside(built(narrow=True), site) == (width // 2, width // 2, width // 2)
    stacked = built(layers=3).at("output_blocks.0.0", "stacked")
    assert len(stacked.attentions) == 3
    assert [attention.heads for attention in stacked.attentions] == [2, 2, 2], "heads are 64 wide"
