"""The names of a checkpoint's tensors in the two schemes: ldm (single files, ComfyUI) and diffusers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...networks.sites import Site, Structure

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."

# What lies outside the sites, and what lies inside a ResBlock and a resize.
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
IN_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
IN_SITE = {"res": IN_RES_BLOCK, "down": {"op": "conv"}}


def layer_names(structure: Structure) -> dict[str, str]:
    """Return every layer of a U-Net outside its transformers, and every transformer as a whole: ldm name -> diffusers
    name."""
    names = dict(OUTSIDE)
    for site in structure.sites():
        names |= _names_in(site)
    return names


def _names_in(site: Site) -> dict[str, str]:
    inside = IN_SITE.get(site.kind)
    if inside is None:
        return {site.name: site.diffusers}
    return {f"{site.name}.{ldm}": f"{site.diffusers}.{diffusers}" for ldm, diffusers in inside.items()}


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors under new names: of each, the longest leading part that `names` knows is replaced.

    Raises:
        ValueError: some tensor begins with none of `names`.
    """
    return {_renamed(name, names): tensor for name, tensor in tensors.items()}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        known = names.get(".".join(parts[:end]))
        if known is not None:
            return ".".join([known, *parts[end:]])
    raise ValueError(f"{name!r} is no tensor of a Stable Diffusion U-Net or autoencoder that can be converted")


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def tiny_autoencoder_names() -> dict[str, str]:
    """Return TAESD's layers, ComfyUI's name -> diffusers' name; ComfyUI's decoder counts its clamp as the first
    layer."""
    encoder = {f"taesd_encoder.{i}": f"encoder.layers.{i}" for i in range(15)}
    decoder = {f"taesd_decoder.{i + 1}": f"decoder.layers.{i}" for i in range(19)}
    return encoder | decoder


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
