"""Attention over frames against its formula pixel by pixel, and AnimateDiff's block against diffusers' own."""

import math
from itertools import product

import pytest
import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from stillmotion.networks.animatediff import MotionModule
from stillmotion.networks.config import CrossFrames, InflationConfig, Temporal
from stillmotion.networks.frame_attention import (
    BlockFrameAttention,
    FeedForward,
    FrameAttention,
    frame_positions,
    zero_init,
)
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.sites import Level, Structure
from torch import nn

SD15_LEVELS = (
    Level(320, (1, 1), (1, 1, 1)),
    Level(640, (1, 1), (1, 1, 1)),
    Level(1280, (1, 1), (1, 1, 1)),
    Level(1280, (0, 0), (0, 0, 0)),
)
SD15 = Structure(SD15_LEVELS, 1, 768)
# the attentions of SD1.5's 16 transformers, C^2 summed: five of 320, five of 640, six of 1280 channels
SQUARES = 5 * 320**2 + 5 * 640**2 + 6 * 1280**2


def randomised(module):
    """Every parameter random, so that nothing is hidden behind a zero or a one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def positions(frames, channels):
    """PE(f, 2i) = sin(f / 10000^(2i/C)), PE(f, 2i+1) = cos(f / 10000^(2i/C)), one number at a time."""

    def one(f, c):
        angle = f / 10000 ** ((c - c % 2) / channels)
        return math.cos(angle) if c % 2 else math.sin(angle)

    return torch.tensor([[one(f, c) for c in range(channels)] for f in range(frames)], dtype=torch.float64)


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def attention_over_frames(layer, pixel):
    """What `layer` adds to the frames of one pixel, `(frames, channels)`, head by head."""
    y = layer_norm(layer.norm, pixel)
    if layer.positional:
        y = y + positions(*y.shape)
    d = y.shape[1] // layer.heads
    q, k, v = ((y @ w.T).split(d, dim=-1) for w in layer.qkv.weight.chunk(3))
    heads = [torch.softmax(q @ k.T / d**0.5, dim=-1) @ v for q, k, v in zip(q, k, v)]
    return torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def feed_forward(layer, tokens):
    value, gate = (layer_norm(layer.norm, tokens) @ layer.expand.weight.T + layer.expand.bias).chunk(2, dim=-1)
    return (value * gelu(gate)) @ layer.out.weight.T + layer.out.bias


def group_norm(norm, x):
    """Of `(channels, ...)`: statistics of each group of channels and of all that follows."""
    groups = x.reshape(32, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    return normed * norm.weight.view(-1, *[1] * (x.ndim - 1)) + norm.bias.view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frame_attention_equals_the_formula_pixel_by_pixel(frames, positional):
    layer = randomised(FrameAttention(channels=12, heads=3, positional=positional))
    tokens = torch.randn(7, frames, 12, dtype=torch.float64)
    expected = torch.stack([attention_over_frames(layer, pixel) for pixel in tokens])
    # the code keeps its positions in float32
    torch.testing.assert_close(layer(tokens), expected, atol=1e-5 if positional else 1e-12, rtol=0)


def test_attention_at_the_end_of_a_block_is_the_formula_for_each_clip_and_pixel():
    frames, layer = 3, randomised(BlockFrameAttention(channels=12, heads=2))
    tokens = torch.randn(2 * frames, 5, 12, dtype=torch.float64)
    got, clips = (t.unflatten(0, (2, frames)) for t in (layer(tokens, frames), tokens))
    for b, n in product(range(2), range(5)):
        torch.testing.assert_close(got[b, :, n], attention_over_frames(layer.attention, clips[b, :, n]))


def test_feed_forward_is_geglu():
    layer = randomised(FeedForward(6))
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens), feed_forward(layer, tokens))


@pytest.mark.parametrize("scope", ["frame", "clip"])
@pytest.mark.parametrize("frames", [1, 5])
def test_temporal_transformer_equals_the_formula_pixel_by_pixel(scope, frames):
    block = randomised(MotionModule(64, 64, 4, True, scope))
    x = torch.randn(2 * frames, 64, 3, 2, dtype=torch.float64) + torch.arange(2 * frames).view(-1, 1, 1, 1)
    got, clips = (t.unflatten(0, (2, frames)) for t in (block(x, frames), x))

    for b in range(2):
        clip = clips[b].transpose(0, 1)  # (channels, frames, height, width)
        per_frame = torch.stack([group_norm(block.norm, frame) for frame in clips[b]], dim=1)
        normed = per_frame if scope == "frame" else group_norm(block.norm, clip)
        for i, j in product(range(3), range(2)):
            y = normed[:, :, i, j].T @ block.proj_in.weight.T + block.proj_in.bias
            for layer in block.attentions:
                y = y + attention_over_frames(layer, y)
            y = y + feed_forward(block.feed_forward, y)
            y = y @ block.proj_out.weight.T + block.proj_out.bias
            torch.testing.assert_close(got[b, :, :, i, j], y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_a_new_block_adds_exactly_nothing(dtype, scope):
    x = torch.randn(2 * 3, 64, 3, 2, dtype=dtype)
    added = MotionModule(64, 64, 8, True, scope).to(dtype)(x, 3)
    assert torch.equal(added, torch.zeros_like(x))
    assert added.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_attention_in_a_block_adds_exactly_nothing(dtype):
    tokens = torch.randn(2 * 3, 5, 24, dtype=dtype)
    assert torch.equal(BlockFrameAttention(24, 8).to(dtype)(tokens, 3), torch.zeros_like(tokens))


def test_weight_and_bias_of_the_last_layer_are_zero_and_no_other_weight_is():
    for block, last in [
        (MotionModule(64, 64, 8, True, "frame"), "proj_out"),
        (BlockFrameAttention(64, 8), "attention.out"),
    ]:
        zero = {name for name, p in block.named_parameters() if not p.any() and "norm" not in name}
        assert zero == {f"{last}.weight", f"{last}.bias"}


@pytest.mark.parametrize("frames, channels", [(1, 2), (7, 6), (32, 320), (80, 64)])
def test_positions_are_sines_on_even_and_cosines_on_odd_channels(frames, channels):
    got = frame_positions(frames, channels, torch.empty(0))
    torch.testing.assert_close(got.double(), positions(frames, channels), atol=1e-5, rtol=0)
    assert got[0].tolist() == [0.0, 1.0] * (channels // 2)


@pytest.mark.parametrize("channels", [320, 640, 1280])
def test_positions_are_those_of_animatediff(channels):
    theirs = SinusoidalPositionalEmbedding(channels, max_seq_length=32).pe[0]
    assert torch.equal(frame_positions(32, channels, torch.empty(0)), theirs)
    assert torch.equal(frame_positions(24, channels, torch.empty(0)), theirs[:24])


def test_positions_are_rounded_once_to_the_dtype_of_the_layer():
    exact = frame_positions(32, 320, torch.empty(0))
    half = frame_positions(32, 320, torch.empty(0, dtype=torch.bfloat16))
    assert torch.equal(half, exact.bfloat16())


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_clips_of_one_batch_do_not_see_each_other(scope):
    frames, block = 3, randomised(MotionModule(64, 64, 4, True, scope))
    x = torch.randn(2 * frames, 64, 3, 2, dtype=torch.float64, requires_grad=True)
    (other,) = torch.autograd.grad(block(x, frames)[:frames].square().sum(), x)
    assert other[:frames].abs().amax((1, 2, 3)).min() > 0
    assert not other[frames:].any()


def test_clips_of_one_batch_do_not_see_each_other_inside_a_transformer():
    frames, layer = 3, randomised(BlockFrameAttention(24, 4))
    tokens = torch.randn(2 * frames, 5, 24, dtype=torch.float64, requires_grad=True)
    (other,) = torch.autograd.grad(layer(tokens, frames)[frames:].square().sum(), tokens)
    assert other[frames:].abs().amax((1, 2)).min() > 0
    assert not other[:frames].any()


def test_pixels_do_not_see_each_other():
    frames, layer = 3, randomised(BlockFrameAttention(24, 4))
    tokens = torch.randn(2 * frames, 5, 24, dtype=torch.float64, requires_grad=True)
    (other,) = torch.autograd.grad(layer(tokens, frames)[:, 2].square().sum(), tokens)
    assert other.abs().amax((0, 2)).nonzero().flatten().tolist() == [2]


def test_attention_without_positions_does_not_know_the_order_of_frames_and_with_them_does():
    tokens, shuffled = torch.randn(7, 5, 24, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    without = randomised(FrameAttention(24, 4, positional=False))
    torch.testing.assert_close(without(tokens[:, shuffled]), without(tokens)[:, shuffled])
    positional = randomised(FrameAttention(24, 4, positional=True))
    assert (positional(tokens[:, shuffled]) - positional(tokens)[:, shuffled]).abs().max() > 0.1


def diffusers_block(channels, heads):
    return AnimateDiffTransformer3D(
        num_attention_heads=heads,
        attention_head_dim=channels // heads,
        in_channels=channels,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
    )


def load_into_diffusers(theirs, ours):
    """Our weights in their names; nothing of theirs is left unset but their stored positions."""
    block, tensors = "transformer_blocks.0", {}
    for layer in ("norm", "proj_in", "proj_out"):
        tensors |= named(layer, getattr(ours, layer))
    for n, attention in enumerate(ours.attentions, 1):
        tensors |= named(f"{block}.norm{n}", attention.norm) | named(f"{block}.attn{n}.to_out.0", attention.out)
        for to, weight in zip(("to_q", "to_k", "to_v"), attention.qkv.weight.chunk(3)):
            tensors[f"{block}.attn{n}.{to}.weight"] = weight
    tensors |= named(f"{block}.norm3", ours.feed_forward.norm)
    tensors |= named(f"{block}.ff.net.0.proj", ours.feed_forward.expand)
    tensors |= named(f"{block}.ff.net.2", ours.feed_forward.out)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == ([f"{block}.pos_embed.pe"], [])


def named(prefix, layer):
    return {f"{prefix}.{name}": tensor for name, tensor in layer.state_dict().items()}


@pytest.mark.parametrize("frames, height, width", [(1, 3, 2), (5, 3, 2), (24, 1, 4)])
def test_with_clip_wide_norms_it_is_diffusers_animatediff_block(frames, height, width):
    ours = randomised(MotionModule(64, 64, 8, True, "clip")).float()
    theirs = diffusers_block(64, 8).eval()
    load_into_diffusers(theirs, ours)
    x = torch.randn(2 * frames, 64, height, width)
    added = theirs(x, num_frames=frames) - x
    torch.testing.assert_close(ours(x, frames), added, atol=1e-5 * added.abs().max().item(), rtol=0)


def test_norms_of_each_frame_and_of_the_clip_differ_unless_all_frames_are_the_same():
    frame, clip = (randomised(MotionModule(64, 64, 8, True, scope)) for scope in ("frame", "clip"))
    clip.load_state_dict(frame.state_dict())
    still = torch.randn(1, 64, 3, 2, dtype=torch.float64).expand(5, -1, -1, -1)
    torch.testing.assert_close(frame(still, 5), clip(still, 5))
    moving = torch.randn(5, 64, 3, 2, dtype=torch.float64)
    assert (frame(moving, 5) - clip(moving, 5)).abs().max() > 1e-3


def test_channels_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ValueError, match="20 channels .* 8 heads"):
        FrameAttention(20, 8, positional=False)


def test_norms_of_each_frame_do_not_see_the_other_frames_of_a_window():
    """With its attentions silenced, a block treats a frame alike in a clip of 5 and in a window of 2."""
    block = randomised(MotionModule(64, 64, 8, True, "frame"))
    for attention in block.attentions:
        zero_init(attention.out)
    x = torch.randn(5, 64, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(block(x, 5)[1:3], block(x[1:3], 2))


def count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Inflation(config, SD15).parameters())


def block_size(c):
    """Weights 22 C^2: projections 2, two attentions of 4, GEGLU 8 + 4; then biases and norms."""
    norm, projections, attention = 2 * c, 2 * (c * c + c), 2 * (2 * c + 4 * c * c + c)
    feed_forward = 2 * c + 8 * c * c + 8 * c + 4 * c * c + c
    return norm + projections + attention + feed_forward


@pytest.mark.parametrize("middle, millions", [(False, 417.14), (True, 453.21)])
def test_parameters_of_animatediff_on_sd15(middle, millions):
    """20 blocks, 21 with the middle one: five of 320, five of 640, five of 1280 at level 2 and five at level 3."""
    blocks = 5 * sum(block_size(c) for c in (320, 640, 1280, 1280)) + middle * block_size(1280)
    assert count(InflationConfig(temporal=Temporal(middle=middle))) == blocks
    assert round(blocks / 1e6, 2) == millions


def test_parameters_of_temporal_attention_in_every_transformer_block_of_sd15():
    """Four projections in 16 transformers are 49.6 million weights; the rest are biases and norms."""
    rest = 3 * (5 * 320 + 5 * 640 + 6 * 1280)
    assert round(4 * SQUARES / 1e6, 1) == 49.6
    assert count(InflationConfig(frame_attention=CrossFrames())) == 4 * SQUARES + rest


def test_more_rows_than_a_kernel_takes_are_attended_in_parts(monkeypatch):
    from stillmotion.networks import frame_attention

    layer, tokens = frame_attention.FrameAttention(32, 4, positional=True).double(), torch.randn(11, 5, 32).double()
    whole = layer(tokens)
    monkeypatch.setattr(frame_attention, "MOST_ROWS", 4)
    torch.testing.assert_close(layer(tokens), whole, rtol=0, atol=1e-12)
