"""Drives a frozen `UNet2DConditionModel` on the frames of clips and hands its activations to an inflation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..networks.clip import Clip
from ..networks.inflation import Attached, Inflation, after_block, after_self_attention, after_unit
from ..networks.queries import QueryLora
from ..networks.sites import Site, Structure, structure_from_diffusers


def structure_of(unet: nn.Module) -> Structure:
    """Raises ValueError where this is not a Stable Diffusion U-Net."""
    return structure_from_diffusers({name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()})


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of `(batch, tokens, channels)` in so many heads."""
    q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


class InflatedUNet(nn.Module):
    """A frozen image U-Net and the inflation that makes it a video U-Net.

    Its parameters that require gradients are exactly the inflation's. Without an inflation it is the frozen model,
    bit for bit. The U-Net is taken over: its weights are frozen and the inflation's queries are put into it.

    Args:
        checkpointing: recompute each layer in the backward pass; half the memory and more for a third of the time.
    """

    def __init__(self, unet: UNet2DConditionModel, inflation: Inflation | None = None, *, checkpointing: bool = False):
        super().__init__()
        self.unet, self.inflation, self.checkpointing = unet.requires_grad_(False).eval(), inflation, checkpointing
        self.sites = structure_of(unet).sites()
        if inflation is not None:
            put_queries(unet, inflation, self.sites)
            inflation.requires_grad_(True)

    def forward(
        self, sample: Tensor, timesteps: Tensor, text: Tensor, clip: Clip, added: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Args:
        sample: noisy latents, `(clips * frames, 4, height / 8, width / 8)`, the frames of a clip adjacent.
        timesteps: `(clips * frames,)`.
        text: `(clips * frames, tokens, channels)`.
        added: SDXL's `text_embeds` and `time_ids`, a row for each frame.

        Returns the U-Net's prediction, shaped like `sample`.
        """
        emb = self._embed_time(sample, timesteps, text, added)
        h, skips = sample, []
        for site in self.sites:
            if site.name.startswith("output") and site.kind == "res":
                h = torch.cat([h, skips.pop()], dim=1)
            size = skips[-1].shape[-2:] if site.kind == "up" else None
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(self._run, site, h, emb, text, clip, size, use_reentrant=False)
            else:
                h = self._run(site, h, emb, text, clip, size)
            if site.name.startswith("input") and (site.ends_unit or site.kind in ("conv_in", "down")):
                skips.append(h)
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h)))

    def _embed_time(self, sample: Tensor, timesteps: Tensor, text: Tensor, added: dict | None) -> Tensor:
        emb = self.unet.time_embedding(self.unet.get_time_embed(sample=sample, timestep=timesteps))
        more = self.unet.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
        return emb if more is None else emb + more

    def _run(self, site: Site, h: Tensor, emb: Tensor, text: Tensor, clip: Clip, size: torch.Size | None) -> Tensor:
        layer = self.unet.get_submodule(site.diffusers)
        if site.kind == "res":
            h = layer(h, emb)
        elif site.kind == "transformer":
            h = self._transformer(layer, h, text, site, clip)
        elif site.kind == "up":
            h = layer(h, size)
        else:
            h = layer(h)
        return after_unit(h, self._attached, site.name, clip) if site.ends_unit else h

    @property
    def _attached(self) -> list[Attached]:
        return [] if self.inflation is None else [Attached(self.inflation)]

    def _transformer(self, layer: nn.Module, x: Tensor, text: Tensor, site: Site, clip: Clip) -> Tensor:
        height, width = x.shape[-2:]
        linear = layer.use_linear_projection
        tokens = layer.norm(x) if linear else layer.proj_in(layer.norm(x))
        tokens = rearrange(tokens, "n c h w -> n (h w) c")
        tokens = layer.proj_in(tokens) if linear else tokens
        for block, name in zip(layer.transformer_blocks, site.blocks):
            tokens = self._block(block, tokens, text, name, clip)
        tokens = layer.proj_out(tokens) if linear else tokens
        y = rearrange(tokens, "n (h w) c -> n c h w", h=height, w=width).contiguous()
        return (y if linear else layer.proj_out(y)) + x

    def _block(self, block: nn.Module, tokens: Tensor, text: Tensor, name: str, clip: Clip) -> Tensor:
        normed = block.norm1(tokens)
        plain = block.attn1(normed)
        attended = after_self_attention(
            plain, normed, self._attached, f"{name}.attn1", clip, project=block.attn1, attention=attend
        )
        tokens = tokens + attended
        tokens = tokens + block.attn2(block.norm2(tokens), encoder_hidden_states=text)
        tokens = tokens + block.ff(block.norm3(tokens))
        return after_block(tokens, self._attached, name, clip)


def put_queries(unet: nn.Module, inflation: Inflation, sites: list[Site]) -> None:
    """Makes the U-Net's query projections add what the inflation's queries say.

    A LoRA is peft's, with the inflation's matrices in it: one owner of the weights, peft's forward.
    """
    queries = {name: part for name, part in _query_sites(inflation, sites)}
    loras = {name: part for name, part in queries.items() if isinstance(part, QueryLora)}
    if loras:
        rank = next(iter(loras.values())).down.out_features
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(loras)), unet)
    for name, part in queries.items():
        layer = unet.get_submodule(name)
        if name in loras:
            layer.lora_A["default"], layer.lora_B["default"] = part.down, part.up
        else:
            layer.register_forward_hook(lambda layer, tokens, queries, part=part: queries + part(*tokens))


def _query_sites(inflation: Inflation, sites: list[Site]) -> Iterator[tuple[str, nn.Module]]:
    for site in sites:
        for block in site.blocks:
            for attention in ("attn1", "attn2"):
                if part := inflation.at(f"{block}.{attention}", "queries"):
                    yield f"{block}.{attention}.to_q".replace(site.name, site.diffusers, 1), part
