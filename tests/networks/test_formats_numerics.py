"""A motion module in AnimateDiff's names computes here what AnimateDiff's own code does, written out as formulas, and
what diffusers' block does."""

import math

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from stillmotion.networks.formats.animatediff import from_animatediff
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.formats.motion_adapter import from_motion_adapter, to_motion_adapter
from stillmotion.networks.inflation import Inflation
from torch import nn

CHANNELS, FRAMES, HEADS = 32, 7, 8
BLOCK = "temporal_transformer.transformer_blocks.0"
PLACES = ["down_blocks.0.motion_modules.0", "up_blocks.0.motion_modules.0", "up_blocks.0.motion_modules.1"]
SITES = ["input_blocks.1.0", "output_blocks.0.0", "output_blocks.1.0"]


def module():
    """The learned tensors of one motion module, each of its own scale."""
    c = CHANNELS
    matrices = {"temporal_transformer.proj_in": (c, c), "temporal_transformer.proj_out": (c, c)}
    matrices |= {f"{BLOCK}.ff.net.0.proj": (8 * c, c), f"{BLOCK}.ff.net.2": (c, 4 * c)}
    matrices |= {f"{BLOCK}.attention_blocks.{k}.to_out.0": (c, c) for k in (0, 1)}
    norms = ["temporal_transformer.norm", f"{BLOCK}.norms.0", f"{BLOCK}.norms.1", f"{BLOCK}.ff_norm"]
    made = {f"{name}.weight": torch.randn(shape) / 4 for name, shape in matrices.items()}
    made |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in matrices.items()}
    made |= {f"{name}.weight": 1 + torch.randn(c) / 2 for name in norms}
    made |= {f"{name}.bias": torch.randn(c) for name in norms}
    for k in (0, 1):
        made |= {f"{BLOCK}.attention_blocks.{k}.to_{letter}.weight": torch.randn(c, c) / 4 for letter in "qkv"}
    return made


def animatediff(p, x, norm_scope):
    """What the module `p` adds to one clip `(frames, channels, height, width)`.

    z = P_in GN(x) + b;  twice: z += O softmax(q k^T / sqrt(d)) v + b with q, k, v of LN(z) + PE(frame);
    z += F_2 (a * gelu(g)) with (a, g) = F_1 LN(z);  P_out z + b. GN's statistics are of each frame, or of the clip.
    """
    frames, c, h, w = x.shape
    groups = x.reshape(frames, 32, c // 32, h, w)
    over = (2, 3, 4) if norm_scope == "frame" else (0, 2, 3, 4)
    groups = (groups - groups.mean(over, True)) / (groups.var(over, unbiased=False, keepdim=True) + 1e-6).sqrt()
    x = groups.reshape(x.shape) * p["temporal_transformer.norm.weight"].view(-1, 1, 1)
    x = x + p["temporal_transformer.norm.bias"].view(-1, 1, 1)
    z = linear(p, "temporal_transformer.proj_in", x.permute(2, 3, 0, 1))  # (height, width, frames, channels)
    for k in (0, 1):
        z = z + attention(p, f"{BLOCK}.attention_blocks.{k}", layer_norm(p, f"{BLOCK}.norms.{k}", z) + sines(frames, c))
    a, g = linear(p, f"{BLOCK}.ff.net.0.proj", layer_norm(p, f"{BLOCK}.ff_norm", z)).split(4 * c, dim=-1)
    z = z + linear(p, f"{BLOCK}.ff.net.2", a * g * (1 + torch.erf(g / 2**0.5)) / 2)
    return linear(p, "temporal_transformer.proj_out", z).permute(2, 3, 0, 1)


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p, name, x):
    normed = (x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return normed * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(p, name, y):
    q, k, v = (y @ p[f"{name}.to_{letter}.weight"].T for letter in "qkv")
    d = CHANNELS // HEADS
    heads = []
    for i in range(0, CHANNELS, d):
        weights = torch.softmax(q[..., i : i + d] @ k[..., i : i + d].transpose(-1, -2) / d**0.5, dim=-1)
        heads.append(weights @ v[..., i : i + d])
    return linear(p, f"{name}.to_out.0", torch.cat(heads, dim=-1))


def sines(frames, channels):
    def one(f, c):
        angle = f / 10000 ** (2 * (c // 2) / channels)
        return math.cos(angle) if c % 2 else math.sin(angle)

    return torch.tensor([[one(f, c) for c in range(channels)] for f in range(frames)], dtype=torch.float64)


def as_inflation(modules, norm_scope):
    """The inflation that a file of these modules is, and their tensors in diffusers' names."""
    info, tensors = from_animatediff({f"{p}.{name}": t for p, made in modules.items() for name, t in made.items()})
    adapter = to_motion_adapter(info, tensors)[1]
    if norm_scope == "clip":  # the same weights as diffusers would run them
        info, tensors = from_motion_adapter(adapter)
    assert info.structure == sd15_like([CHANNELS], [1]) and info.config.temporal.norm_scope == norm_scope
    inflation = Inflation(info.config, info.structure).double()
    inflation.load_state_dict(tensors)
    return inflation, adapter


def clips():
    """Two clips whose frames differ in scale, so that a norm of the clip is not one of each frame."""
    return torch.randn(2 * FRAMES, CHANNELS, 3, 4, dtype=torch.float64) * torch.rand(2 * FRAMES, 1, 1, 1) * 4


@pytest.mark.parametrize("norm_scope", ["frame", "clip"])
@torch.no_grad()
def test_our_blocks_compute_what_the_formulas_say(norm_scope):
    modules, x = {place: module() for place in PLACES}, clips()
    inflation, _ = as_inflation(modules, norm_scope)
    for place, site in zip(PLACES, SITES):
        p = {name: tensor.double() for name, tensor in modules[place].items()}
        expected = torch.cat([animatediff(p, clip, norm_scope) for clip in x.split(FRAMES)])
        torch.testing.assert_close(inflation.at(site, "attention")(x, FRAMES), expected, rtol=0, atol=1e-5)
        other = torch.cat([animatediff(p, clip, {"frame": "clip", "clip": "frame"}[norm_scope]) for clip in x.split(7)])
        assert (other - expected).abs().max() > 0.1


class NormOfEachFrame(nn.Module):
    """AnimateDiff's scope in diffusers' block, whose norm gets `(clips, channels, frames, height, width)`."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, clips):
        return torch.stack([self.norm(frames) for frames in clips.unbind(2)], dim=2)


def diffusers_block(adapter, place, norm_scope):
    """Their block with every tensor of one place but the positions, which it computes itself."""
    tensors = {name.removeprefix(f"{place}."): t for name, t in adapter.items() if name.startswith(f"{place}.")}
    table = "transformer_blocks.0.pos_embed.pe"
    positions = {"positional_embeddings": "sinusoidal", "num_positional_embeddings": tensors.pop(table).shape[1]}
    block = AnimateDiffTransformer3D(HEADS, CHANNELS // HEADS, CHANNELS, **positions)
    assert block.load_state_dict(tensors, strict=False) == ([table], [])
    block.norm = NormOfEachFrame(block.norm) if norm_scope == "frame" else block.norm
    return block.double().eval()


@pytest.mark.parametrize("norm_scope", ["frame", "clip"])
@torch.no_grad()
def test_our_blocks_compute_what_diffusers_does_with_the_same_tensors(norm_scope):
    inflation, adapter = as_inflation({place: module() for place in PLACES}, norm_scope)
    x = clips()
    for place, site in zip(PLACES, SITES):
        added = diffusers_block(adapter, place, norm_scope)(x, num_frames=FRAMES) - x
        torch.testing.assert_close(inflation.at(site, "attention")(x, FRAMES), added, rtol=0, atol=1e-5)
