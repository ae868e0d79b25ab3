"""The appearance path: a LoRA that learns how single frames look, so that what learns motion need not.

Source: the dual path of MotionDirector (Zhao et al. 2023, arXiv 2310.08465, section 3.2).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.lora import Lora
from .spatial import Loras, attention_layers, fresh_loras

Looks = Literal["learn", "keep", "without"]
"""What a pass does with the LoRA: single frames learn it, clips have it as it is, samples of the motion file do not."""

FEED_FORWARD = "ff.net.0.proj", "ff.net.2"


class Appearance(Loras):
    """LoRAs of all attentions and feed-forward layers of a frozen U-Net, which they are put into.

    A new one changes nothing, and is the same for the same seed. `now` is of the layer that runs: the host says it at
    each, because one that is computed again in the backward pass must find what it found before.
    """

    def __init__(self, unet: nn.Module, rank: int, seed: int):
        names = [*attention_layers(unet), *feed_forward_layers(unet)]
        super().__init__(fresh_loras(unet, names, rank, seed))
        self.now: Looks = "without"
        for name, lora in self.items():
            unet.get_submodule(name).register_forward_hook(partial(self._add, lora))

    def _add(self, lora: Lora, layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        if self.now == "without":
            return out
        down, up = lora.down.weight, lora.up.weight
        if self.now == "keep":
            down, up = down.detach(), up.detach()
        return out + F.linear(F.linear(*inputs, down), up)


def feed_forward_layers(unet: nn.Module) -> list[str]:
    """Name the linear layers of all feed-forward networks."""
    blocks = [name for name, _ in unet.named_modules() if name.rpartition(".")[2] == "ff"]
    return [f"{name.removesuffix('ff')}{layer}" for name in blocks for layer in FEED_FORWARD]
