"""Stable Diffusion checkpoints in one file with ldm names: their tensors to and from diffusers' models."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...networks.atomic import remove_unfinished, replacing, write_durably
from ...networks.sites import Structure, structure_from_diffusers, structure_from_ldm
from ...networks.tensor_file import write_tensors
from .ldm_names import TEXT, UNET, VAE, inverse, layer_names, rename, tiny_autoencoder_names, under, with_prefix
from .tensors import Tensors

LATENT_SCALE = 0.18215
"""Stable Diffusion 1.x: what a raw latent is multiplied by before the U-Net sees it."""


def write_checkpoint(
    path: Path,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderTiny,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write one file that ComfyUI's CheckpointLoaderSimple and `load_base` read; a file there is replaced at once."""
    tensors = with_prefix(UNET, unet_to_ldm(unet))
    tensors |= with_prefix(TEXT, text_encoder_to_ldm(text_encoder))
    tensors |= with_prefix(VAE, tiny_autoencoder_to_ldm(vae))
    kept = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    remove_unfinished(path.parent, glob.escape(path.name))
    with replacing(path) as beside:
        write_durably(beside, lambda file: write_tensors(file, kept, metadata))


def unet_from_ldm(tensors: Tensors) -> UNet2DConditionModel:
    """Return a U-Net of SD1.5's, SD2.x's or SDXL's kind from its tensors in ldm names; any levels, blocks and
    widths."""
    structure = structure_from_ldm(shapes_of(tensors))
    if missing := [name for name in ("input_blocks.0.0.weight", "out.2.weight") if name not in tensors]:
        raise ValueError(f"its U-Net lacks {missing[0]}")
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**unet_config(structure, shapes_of(tensors)))
    fill(unet, rename(tensors, layer_names(structure)), "U-Net")
    return unet


def unet_to_ldm(unet: UNet2DConditionModel) -> Tensors:
    tensors = unet.state_dict()
    return rename(tensors, inverse(layer_names(structure_from_diffusers(shapes_of(tensors)))))


def unet_config(structure: Structure, shapes: Mapping[str, Sequence[int]]) -> dict:
    """Return the arguments of UNet2DConditionModel. SD1.5 has 8 heads everywhere, the later families 64 channels a
    head."""
    levels, widths = structure.levels, [level.width for level in structure.levels]
    proj_in = next((shape for name, shape in shapes.items() if name.endswith("1.proj_in.weight")), ())
    config = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": [len(level.down) for level in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if any(level.down) else "DownBlock2D" for level in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if any(level.up) else "UpBlock2D" for level in levels[::-1]],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if structure.middle else None,
        "transformer_layers_per_block": [max(*level.down, *level.up, 1) for level in levels],
        "attention_head_dim": 8 if structure.family == "sd15" else [width // 64 for width in widths],
        "cross_attention_dim": structure.context,
        "use_linear_projection": len(proj_in) == 2,
    }
    if "label_emb.0.0.weight" in shapes:
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config |= {"projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
    return config


def text_encoder_from_ldm(tensors: Tensors) -> CLIPTextModel:
    """Return CLIP-L from its tensors without the prefix `cond_stage_model.transformer.text_model.`."""
    with init_empty_weights(include_buffers=False):
        text_encoder = CLIPTextModel(clip_config())
    fill(text_encoder, text_encoder_weights(text_encoder, tensors), "CLIP text encoder")
    return text_encoder


def text_encoder_weights(text_encoder: CLIPTextModel, tensors: Tensors) -> Tensors:
    """Return tensors without a prefix under the names that this version of transformers has."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "embeddings.position_ids"}
    nested = any(name.startswith("text_model.") for name in text_encoder.state_dict())
    return with_prefix("text_model.", tensors) if nested else tensors


def text_encoder_to_ldm(text_encoder: CLIPTextModel) -> Tensors:
    """Add or take away `text_model.`, which older versions of transformers put before every name."""
    tensors = text_encoder.state_dict()
    return {name.removeprefix("text_model."): t for name, t in tensors.items() if not name.endswith("position_ids")}


def clip_config() -> CLIPTextConfig:
    """Return CLIP ViT-L/14's text tower, the text encoder of SD1.5."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )


def autoencoder_from_ldm(tensors: Tensors) -> AutoencoderKL | AutoencoderTiny:
    """Return the autoencoder of a checkpoint, of Stable Diffusion's kind or of TAESD's."""
    if "taesd_decoder.1.weight" in tensors:
        return tiny_autoencoder_from_ldm(tensors)
    config = kl_config(shapes_of(tensors))
    with init_empty_weights(include_buffers=False):
        vae = AutoencoderKL(**config, scaling_factor=LATENT_SCALE)
    fill(vae, convert_ldm_vae_checkpoint(tensors, config), "autoencoder")
    return vae


def kl_config(shapes: Mapping[str, Sequence[int]]) -> dict:
    """Return the arguments of AutoencoderKL."""
    levels = _count(shapes, "encoder.down.{}.block.0.conv2.weight")
    if not levels:
        raise ValueError("it holds no autoencoder")
    return {
        "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)],
        "layers_per_block": _count(shapes, "encoder.down.0.block.{}.conv2.weight"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _count(shapes: Mapping[str, Sequence[int]], name: str) -> int:
    number = 0
    while name.format(number) in shapes:
        number += 1
    return number


def tiny_autoencoder_from_ldm(tensors: Tensors) -> AutoencoderTiny:
    scale, shift = (tensors[name].item() if name in tensors else 0.0 for name in ("vae_scale", "vae_shift"))
    if abs(scale - LATENT_SCALE) > 1e-3 or shift:
        raise ValueError(f"its autoencoder has vae_scale {scale:.5f} and vae_shift {shift}, not {LATENT_SCALE} and 0")
    layers = {name: tensor for name, tensor in tensors.items() if name.startswith("taesd_")}
    vae = AutoencoderTiny()
    fill(vae, rename(layers, tiny_autoencoder_names()), "autoencoder")
    return vae


def tiny_autoencoder_to_ldm(vae: AutoencoderTiny) -> Tensors:
    """Bake `vae_scale` in: ComfyUI multiplies by it before decoding and divides after encoding, so its latents are
    raw."""
    tensors = rename(vae.state_dict(), inverse(tiny_autoencoder_names()))
    return tensors | {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(0.0)}


def fill(model: nn.Module, tensors: Tensors, name: str) -> None:
    """Make these tensors, in their own number type, the weights of a model.

    Raises:
        ValueError: tensors are missing, left over or of another shape; the first of each kind is named.
    """
    expected, given = shapes_of(model.state_dict()), shapes_of(tensors)
    problems = {
        "lacks": sorted(expected.keys() - given.keys()),
        "has the unknown": sorted(given.keys() - expected.keys()),
        "has in another shape": sorted(n for n in expected.keys() & given.keys() if expected[n] != given[n]),
    }
    found = [f"{what} {names[0]} ({len(names)} in all)" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"its {name} {', '.join(found)}")
    model.load_state_dict(tensors, assign=True)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def checkpoint_parts(tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Return the tensors of U-Net, text encoder and autoencoder, each without its prefix; any of them may be empty."""
    text = under(TEXT, tensors) or under(TEXT.removesuffix("text_model."), tensors)
    return under(UNET, tensors), text, under(VAE, tensors)
