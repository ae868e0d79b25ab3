"""The toy's U-Net and text encoder before training, with weights that make learning short."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn
from transformers import CLIPTextModel

from ..base.ldm_checkpoint import clip_config
from ..base.seeding import seeded_by

# ComfyUI recognises SD1.5 by these two and by a transformer somewhere on the way down; the rest is free.
WIDTH = 320
CONTEXT = 768

SIZES = {"small": ((0, 1), 1), "medium": ((1, 1), 1), "sd15": ((1, 1, 1, 0), 2)}
"""Transformers at each level, the finest first, and ResBlocks at each level: 36.7, 44.3 and 111.5 M parameters."""


def new_unet(size: str, generator: Generator) -> UNet2DConditionModel:
    """Return a U-Net of one of the SIZES whose prediction is its input: a good guess of the noise from the start."""
    depths, blocks = SIZES[size]
    with seeded_by(generator):
        unet = UNet2DConditionModel(
            block_out_channels=[WIDTH] * len(depths),
            layers_per_block=blocks,
            down_block_types=["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
            up_block_types=["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in depths[::-1]],
            cross_attention_dim=CONTEXT,
            attention_head_dim=8,
        )
    silence_branches(unet)
    pass_input_through(unet)
    return unet


def silence_branches(unet: UNet2DConditionModel) -> None:
    """Start every residual branch at zero, as the original code of latent diffusion does."""
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            _zero(module)


@torch.no_grad()
def pass_input_through(unet: UNet2DConditionModel) -> None:
    """Let the first group of channels carry +x and -x past everything to the last layer.

    There x = silu(x) - silu(-x) undoes the activation. The group's norm divides by the root mean square of its ten
    channels, eight of which carry x; sqrt(0.8) undoes that for an x of variance one.
    """
    shortcut = unet.up_blocks[-1].resnets[-1].conv_shortcut
    group = WIDTH // 32
    for part in (unet.conv_in.weight, unet.conv_in.bias, shortcut.weight, shortcut.bias):
        part[:group] = 0
    _zero(unet.conv_out)
    for channel in range(8):
        sign, latent = (1, channel) if channel < 4 else (-1, channel - 4)
        unet.conv_in.weight[channel, latent, 1, 1] = sign
        shortcut.weight[channel, WIDTH + channel] = 1  # the skip comes second in the concatenation
        unet.conv_out.weight[latent, channel, 1, 1] = sign * 0.8**0.5


@torch.no_grad()
def fill_silent_layers(unet: UNet2DConditionModel, generator: Generator) -> None:
    """Put small random numbers where weights are zero: a U-Net that shall not be trained then hears every branch."""
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=0.02, generator=generator)


@torch.no_grad()
def new_text_encoder(generator: Generator) -> CLIPTextModel:
    """Return CLIP-L whose layers add nothing: each token is its own random vector plus one for its place, normalised.

    The start and end tokens come out near zero, by a large entry in one channel that the final norm then drops:
    most of the 77 places are filled with the end token and would drown the words in every attention.
    """
    with seeded_by(generator):
        text_encoder = CLIPTextModel(clip_config())
        tower = tower_of(text_encoder)
        nn.init.normal_(tower.embeddings.token_embedding.weight)
        nn.init.normal_(tower.embeddings.position_embedding.weight)
    start_and_end = tower.embeddings.token_embedding.weight[-2:]
    start_and_end.zero_()[:, 0] = 1000
    tower.final_layer_norm.weight.fill_(2)[0] = 0
    for layer in tower.encoder.layers:
        _zero(layer.self_attn.out_proj)
        _zero(layer.mlp.fc2)
    return text_encoder.eval().requires_grad_(False)


def read_tokens(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """Embed tokens (n, 77) as the toy's text encoder does, without its layers, which add nothing."""
    tower = tower_of(text_encoder)
    return tower.final_layer_norm(tower.embeddings(ids))


def tower_of(text_encoder: CLIPTextModel) -> nn.Module:
    """Return the transformer itself, which older versions of transformers keep one level deeper."""
    return getattr(text_encoder, "text_model", text_encoder)


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
