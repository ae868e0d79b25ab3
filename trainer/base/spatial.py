"""What trains of the image model itself: nothing, a LoRA in its attentions, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ...networks.lora import Lora
from ...networks.sites import Structure
from .ldm_names import inverse, layer_names, rename

Spatial = Literal["frozen", "lora", "full"]

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class Loras(nn.Module):
    """The LoRAs of a U-Net's attentions, by the names of their layers in diffusers."""

    def __init__(self, loras: dict[str, Lora]):
        super().__init__()
        self.names = list(loras)
        self.all = nn.ModuleList(loras.values())

    def items(self):
        return zip(self.names, self.all)


def trained_of(unet: UNet2DConditionModel, spatial: Spatial, rank: int, seed: int) -> nn.Module | None:
    """Make what trains of a frozen U-Net trainable, and return it: the U-Net, or LoRAs that are put into it.

    A new LoRA changes nothing, and is the same for the same seed.
    """
    if spatial == "frozen":
        return None
    if spatial == "full":
        return unet.requires_grad_(True)
    loras = Loras(fresh_loras(unet, attention_layers(unet), rank, seed))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=loras.names), unet)
    for name, lora in loras.items():
        layer = unet.get_submodule(name)
        layer.lora_A["default"], layer.lora_B["default"] = lora.down, lora.up
    return loras


def fresh_loras(unet: nn.Module, names: Sequence[str], rank: int, seed: int) -> dict[str, Lora]:
    """Return a LoRA for each of these linear layers, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: _lora_of(unet.get_submodule(name), rank) for name in names}


def _lora_of(layer: nn.Linear, rank: int) -> Lora:
    return Lora(layer.in_features, layer.out_features, rank)


def attention_layers(unet: nn.Module) -> list[str]:
    """Name the linear layers of all self- and cross-attentions."""
    return [
        f"{name}.{projection}"
        for name, _ in unet.named_modules()
        if name.rpartition(".")[2] in ("attn1", "attn2")
        for projection in PROJECTIONS
    ]


def exported(spatial: nn.Module, tensors: dict[str, Tensor], structure: Structure) -> dict[str, Tensor]:
    """Return trained tensors in the form that other programs load: kohya's LoRA, or a U-Net in ldm names.

    Args:
        tensors: the state dict of what trained, whole.
    """
    if not isinstance(spatial, Loras):
        return rename(tensors, inverse(layer_names(structure)))
    files = {}
    for number, name in enumerate(spatial.names):
        down, up = (tensors[f"all.{number}.{part}.weight"] for part in ("down", "up"))
        key = "lora_unet_" + name.replace(".", "_")
        files |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        files[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return files
