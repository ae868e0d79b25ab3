"""HARIVO's mapping network against its formula pixel by pixel."""

from itertools import product

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Mapping
from stillmotion.networks.frame_attention import zero_init
from stillmotion.networks.inflation import Attached, Inflation, before_unet
from stillmotion.networks.mapping import MappingNetwork
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F

SLIM = Structure((Level(32, (1,), (1,)),), middle=None, context=16)


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def mhsa(network, c):
    """W_O [head_1 … head_8], each 64 wide, of the frames of one pixel, `(frames, 4)`, after their LayerNorm."""
    y = F.layer_norm(c, (4,), network.norm.weight, network.norm.bias)
    q, k, v = ((y @ w.T).split(64, dim=-1) for w in network.qkv.weight.chunk(3))
    heads = [torch.softmax(q @ k.T / 8, dim=-1) @ v for q, k, v in zip(q, k, v)]
    assert len(heads) == 8
    return torch.cat(heads, dim=-1) @ network.out.weight.T + network.out.bias


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("frames", [1, 5])
def test_it_equals_its_formula_pixel_by_pixel(frames, kernel):
    """c = x + b(x), y = c + P(MHSA(LN(c))), b: convolution, SiLU, convolution; it returns y - x."""
    network, padding = randomised(MappingNetwork(kernel)), (1, kernel // 2, kernel // 2)
    x = torch.randn(2 * frames, 4, 3, 2, dtype=torch.float64)
    got = network(x, frames).unflatten(0, (2, frames))
    for b, clip in enumerate(x.unflatten(0, (2, frames))):
        inside = F.conv3d(clip.transpose(0, 1), network.widen.weight, network.widen.bias, padding=padding)
        inside = inside / (1 + torch.exp(-inside))
        assert inside.shape == (16, frames, 3, 2)
        branch = F.conv3d(inside, network.narrow.weight, network.narrow.bias, padding=padding).transpose(0, 1)
        for i, j in product(range(3), range(2)):
            c = clip[:, :, i, j] + branch[:, :, i, j]
            y = c + mhsa(network, c) @ network.proj.weight.T + network.proj.bias
            torch.testing.assert_close(got[b, :, :, i, j], y - clip[:, :, i, j])


def test_with_a_kernel_of_one_pixels_do_not_see_each_other_and_with_three_neighbours_do():
    for kernel, seen in [(1, 1), (3, 15)]:  # two convolutions of three reach two pixels to each side
        network = randomised(MappingNetwork(kernel))
        x = torch.randn(3, 4, 3, 7, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x, 3)[:, :, 1, 3].square().sum(), x)
        assert gradient.abs().sum((0, 1)).count_nonzero() == seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_new_network_adds_exactly_nothing(dtype, kernel):
    x = torch.randn(2 * 3, 4, 3, 2, dtype=dtype)
    assert torch.equal(MappingNetwork(kernel).to(dtype)(x, 3), torch.zeros_like(x))
    attached = Attached(Inflation(InflationConfig(mapping=Mapping(kernel)), SLIM).to(dtype))
    assert torch.equal(before_unet(x, [attached], Clip.of(3)), x)


def test_parameters():
    """8 224 of the attention, its norm and P: 3 x 4 x 512, 512 x 4 + 4, 8, 20; two convolutions 4 to 16 and back."""
    network = MappingNetwork()
    sizes = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    attention = {"norm": 8, "qkv": 6144, "out": 2052, "proj": 20}
    assert sizes == {"widen": 3 * 4 * 16 + 16, "narrow": 3 * 16 * 4 + 4, **attention}
    assert sum(attention.values()) == 8224


def test_the_attention_does_not_know_the_order_of_frames_and_the_convolution_does():
    network, shuffled = randomised(MappingNetwork()), torch.tensor([3, 0, 4, 1, 2])
    x = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    assert (network(x[shuffled], 5) - network(x, 5)[shuffled]).abs().max() > 0.1
    zero_init(network.narrow)
    assert network(x, 5).abs().max() > 0.1
    torch.testing.assert_close(network(x[shuffled], 5), network(x, 5)[shuffled])


def test_both_zeros_learn_at_the_first_step_and_all_else_at_the_second():
    network, (x, target) = MappingNetwork().double(), torch.randn(2, 2 * 3, 4, 3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def gradients():
        optimizer.zero_grad()
        F.mse_loss(x + network(x, 3), target).backward()
        return {name for name, layer in network.named_children() if all(p.grad.any() for p in layer.parameters())}

    assert gradients() == {"narrow", "proj"}
    optimizer.step()
    assert gradients() == {"widen", "narrow", "norm", "qkv", "out", "proj"}


def test_further_channels_are_not_seen_and_not_touched():
    """Of an inpainting U-Net: mask and masked picture are behind the latents."""
    attached = [Attached(randomised(Inflation(InflationConfig(mapping=Mapping()), SLIM)), mapping=0.7)]
    x = torch.randn(2 * 3, 9, 3, 2, dtype=torch.float64)
    got = before_unet(x, attached, Clip.of(3))
    assert torch.equal(got[:, 4:], x[:, 4:])
    assert torch.equal(got[:, :4], before_unet(x[:, :4], attached, Clip.of(3)))
    assert (got[:, :4] - x[:, :4]).abs().amin((1, 2, 3)).min() > 0


def test_several_add_up_in_any_order_each_by_its_strength():
    x = torch.randn(2 * 3, 4, 3, 2, dtype=torch.float64)
    made = [randomised(Inflation(InflationConfig(mapping=Mapping(kernel)), SLIM)) for kernel in (1, 3)]
    attached = [Attached(made[0], mapping=0.5), Attached(made[1], temporal=7.0, mapping=-2.0)]
    expected = x + 0.5 * made[0].at("sample", "mapping")(x, 3) - 2 * made[1].at("sample", "mapping")(x, 3)
    torch.testing.assert_close(before_unet(x, attached, Clip.of(3)), expected)
    torch.testing.assert_close(before_unet(x, attached[::-1], Clip.of(3)), expected)
    assert torch.equal(before_unet(x, [Attached(made[0], mapping=0.0)], Clip.of(3)), x)
