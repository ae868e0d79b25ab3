"""The convolution over frames against Conv1d pixel by pixel, and HiGen's block of four against its formula."""

from itertools import product

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.convolution import FrameConvolution
from stillmotion.networks.higen import TemporalConvolution
from stillmotion.networks.inflation import Attached, Inflation, after_layer
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F

LEVELS = [Level(width, (d, d), (d, d, d)) for width, d in [(320, 1), (640, 1), (1280, 1), (1280, 0)]]
SD15 = Structure(tuple(LEVELS), 1, 768)
TCONV = Temporal(levels=(("convolution",),), middle=True)


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_a_convolution_over_frames_is_conv1d_of_every_pixel(frames, stride):
    layer, conv1d = FrameConvolution(6, stride).double(), nn.Conv1d(6, 6, 3, stride, padding=1).double()
    conv1d.load_state_dict({"weight": layer.conv.weight.squeeze(-1), "bias": layer.conv.bias})
    x = torch.randn(2 * frames, 6, 3, 2, dtype=torch.float64)
    got, clips = layer(x, frames).unflatten(0, (2, -1)), x.unflatten(0, (2, frames))
    for b, i, j in product(range(2), range(3), range(2)):
        pixel = b, slice(None), slice(None), i, j  # (frames, channels)
        torch.testing.assert_close(got[pixel], conv1d(clips[pixel].T).T)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_frame_is_the_weighted_sum_of_itself_and_its_neighbours(stride):
    """y_f = W_0 x_{f-1} + W_1 x_f + W_2 x_{f+1} + bias, with nothing beyond either end."""
    layer = randomised(FrameConvolution(3, stride))
    before, here, after = layer.conv.weight.squeeze(-1).unbind(-1)
    x = torch.randn(5, 3, 1, 1, dtype=torch.float64)
    padded = F.pad(x[:, :, 0, 0], (0, 0, 1, 1))
    each = [before @ padded[f] + here @ padded[f + 1] + after @ padded[f + 2] + layer.conv.bias for f in range(5)]
    torch.testing.assert_close(layer(x, 5)[:, :, 0, 0], torch.stack(each)[::stride])


def tconv(block, clip, scope):
    """conv4(conv3(conv2(conv1(clip)))) of `(channels, frames, h, w)`, conv_i: GroupNorm, SiLU, Conv3d (3, 1, 1)."""
    for norm, convolution in zip(block.norms, block.convolutions):
        if scope == "clip":
            y = F.group_norm(clip[None], 32, norm.weight, norm.bias)[0]
        else:
            y = F.group_norm(clip.transpose(0, 1), 32, norm.weight, norm.bias).transpose(0, 1)
        y = y / (1 + torch.exp(-y))
        clip = F.conv3d(y, convolution.conv.weight[..., None], convolution.conv.bias, padding=(1, 0, 0))
    return clip


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("frames", [2, 5])
def test_the_block_is_four_times_norm_silu_and_convolution(scope, frames):
    block = randomised(TemporalConvolution(64, scope))
    x = torch.randn(2 * frames, 64, 3, 2, dtype=torch.float64) + torch.arange(2 * frames).view(-1, 1, 1, 1)
    got = block(x, frames).unflatten(0, (2, frames))
    for b, clip in enumerate(x.unflatten(0, (2, frames))):
        torch.testing.assert_close(got[b].transpose(0, 1), tconv(block, clip.transpose(0, 1), scope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_a_new_block_adds_exactly_nothing(dtype, scope):
    x = torch.randn(2 * 3, 64, 3, 2, dtype=dtype)
    assert torch.equal(TemporalConvolution(64, scope).to(dtype)(x, 3), torch.zeros_like(x))


def test_the_last_convolution_learns_at_the_first_step_and_the_others_at_the_second():
    block, (x, target) = TemporalConvolution(64, "frame"), torch.randn(2, 2 * 3, 64, 3, 2)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)

    def gradients():
        optimizer.zero_grad()
        F.mse_loss(x + block(x, 3), target).backward()
        return [[p.grad.any().item() for p in convolution.parameters()] for convolution in block.convolutions]

    assert gradients() == [[False, False]] * 3 + [[True, True]]
    optimizer.step()
    assert gradients() == [[True, True]] * 4


def test_a_clip_of_one_frame_is_left_as_it_is_whatever_was_learnt():
    slim = Structure((Level(32, (1,), (1,)),), middle=1, context=16)
    inflation = randomised(Inflation(InflationConfig(temporal=TCONV), slim))
    assert inflation.at("input_blocks.1.0", "convolution")
    x = torch.randn(3, 32, 3, 2, dtype=torch.float64)
    assert torch.equal(after_layer(x, [Attached(inflation)], "input_blocks.1.0", Clip.of(1)), x)
    assert not torch.equal(after_layer(x, [Attached(inflation)], "input_blocks.1.0", Clip.of(3)), x)


def test_a_block_has_twelve_matrices():
    """12 C² weights, and a bias and a norm for each of four."""
    assert sum(p.numel() for p in TemporalConvolution(64, "frame").parameters()) == 12 * 64**2 + 4 * 3 * 64


def test_on_sd15_it_is_after_every_one_of_22_resblocks():
    """266.9 million parameters, as in HiGen's release."""
    with torch.device("meta"):
        inflation = Inflation(InflationConfig(temporal=TCONV), SD15)
    down, up = [f"input_blocks.{i}.0" for i in (1, 2, 4, 5, 7, 8, 10, 11)], [f"output_blocks.{i}.0" for i in range(12)]
    places = [f"{name}.convolution" for name in (*down, "middle_block.0", "middle_block.2", *up)]
    assert [name for name, _ in inflation.parts()] == places
    widths = 5 * [320] + 5 * [640] + 12 * [1280]
    count = sum(p.numel() for p in inflation.parameters())
    assert count == sum(12 * c**2 + 12 * c for c in widths)
    assert round(count / 1e6, 1) == 266.9
