"""Drives a frozen `UNet2DConditionModel` on the frames of clips and hands its activations to an inflation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...networks.asked import NOTHING, Asked
from ...networks.clip import Clip, Rows
from ...networks.inflation import (
    Attached,
    Inflation,
    after_block,
    after_cross_attention,
    after_layer,
    after_self_attention,
    before_unet,
    double_frames,
    embedded,
    frame_tokens,
    halve_frames,
    resampled,
    resampled_text,
)
from ...networks.sites import Site, Structure, structure_from_diffusers
from ...networks.temporal_lora import put_on
from .appearance import Appearance, Looks
from .spatial import Spatial, trained_of

Penalty = Callable[[Tensor, Tensor, int], Tensor]
"""A loss of the queries and keys of a self-attention, `(clips * frames, heads, pixels, d)` each, and the frames."""


class Observed(NamedTuple):
    """One forward: the U-Net's prediction, the output of its middle block (h-space), and all penalties in order."""

    prediction: Tensor
    middle: Tensor
    penalties: list[Tensor]


def structure_of(unet: nn.Module) -> Structure:
    """Return the structure of a U-Net. Raise ValueError where it is none of Stable Diffusion's."""
    return structure_from_diffusers({name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()})


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend in so many heads: `(batch, tokens, channels)` each."""
    q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=heads) for t in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


class InflatedUNet(nn.Module):
    """A frozen image U-Net and the inflation that makes it a video U-Net.

    Its parameters that require gradients are exactly the inflation's, and those of `spatial`. Without an inflation it
    is the frozen model, bit for bit. The U-Net is taken over: its weights are frozen and the inflation's queries are
    put into it.

    Args:
        ground: another inflation, frozen, that this one was made to be learnt on top of; is taken over as the U-Net is.
        checkpointing: recompute each layer in the backward pass; half the memory and more for a third of the time.
        spatial, rank, seed: what trains of the U-Net itself, see `trained_of`.
        appearance: rank of an `Appearance`, which then is what trains of it.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        inflation: Inflation | None = None,
        *,
        ground: Inflation | None = None,
        checkpointing: bool = False,
        spatial: Spatial = "frozen",
        rank: int = 16,
        seed: int = 0,
        appearance: int | None = None,
    ):
        super().__init__()
        self.unet, self.inflation, self.checkpointing = unet.requires_grad_(False).eval(), inflation, checkpointing
        self.sites, self.ground = structure_of(unet).sites(), ground
        self.spatial = Appearance(unet, appearance, seed) if appearance else trained_of(unet, spatial, rank, seed)
        self.moving = True  # whether the layer that runs now is of a clip: the queries are put into the U-Net
        if ground is not None:
            put_queries(unet, ground.requires_grad_(False).eval(), self.sites, lambda: self.moving)
        if inflation is not None:
            put_queries(unet, inflation, self.sites, lambda: self.moving)
            inflation.requires_grad_(True)
        if ground is not None and inflation is not None:
            put_on(ground, inflation.parts())

    @property
    def appearance(self) -> Appearance | None:
        return self.spatial if isinstance(self.spatial, Appearance) else None

    def forward(
        self,
        sample: Tensor,
        timesteps: Tensor,
        text: Tensor,
        clip: Clip,
        added: dict[str, Tensor] | None = None,
        asked: Asked = NOTHING,
    ) -> Tensor:
        """Return the U-Net's prediction, shaped like `sample`.

        Args:
            sample: noisy latents, `(clips * frames, 4, height / 8, width / 8)`, the frames of a clip adjacent.
            timesteps: `(clips * frames,)`.
            text: `(clips * frames, tokens, channels)`.
            added: SDXL's `text_embeds` and `time_ids`, a row for each frame.
            asked: what the inflation's prior and guidance are given.
        """
        return self.observe(sample, timesteps, text, clip, added, self.attached(asked)).prediction

    def attached(self, asked: Asked = NOTHING) -> list[Attached]:
        """Return the ground and the inflation, as far as there are such, as they were trained."""
        return [Attached(each, asked=asked) for each in (self.ground, self.inflation) if each is not None]

    def observe(
        self,
        sample: Tensor,
        timesteps: Tensor,
        text: Tensor,
        clip: Clip,
        added: dict[str, Tensor] | None,
        attached: Sequence[Attached],
        penalty: Penalty | None = None,
        prompts: Sequence[int] | None = None,
        looks: Looks = "without",
    ) -> Observed:
        """Return what `forward` does, and what losses are made of on the way.

        Args:
            attached: the inflation with strengths of its own, or none.
            penalty: a loss of the queries and keys of each self-attention on the way up.
            prompts: which rows of `text` are the same, as in `frame_tokens`.
            looks: what is done with the `appearance`, where there is one.
        """
        emb = embedded(self._embed_time(sample, timesteps, text, added), attached, clip)
        tokens = tuple(frame_tokens(text, attached, clip, prompts))
        rows = Rows(clip, emb, resampled_text(text, attached, clip, prompts), tokens)
        h, middle, skips, finer, penalties = before_unet(sample, attached, clip), None, [], [], []
        for site in self.sites:
            if site.stage == "output" and site.kind == "res":
                middle = h if middle is None else middle
                h = torch.cat([h, skips.pop()], dim=1)
            size = skips[-1].shape[-2:] if site.kind == "up" else None
            h, *found = self._recomputed(self._run, site, h, rows, size, attached, penalty, looks)
            penalties += found
            if resampled(attached, site.name):
                before, rows = rows, next_rate(site, rows, finer)
                h = self._recomputed(self._resample, site, h, before.clip, rows.clip, attached)
            if site.stage == "input" and (site.ends_unit or site.kind in ("conv_in", "down")):
                skips.append(h)
        return Observed(self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(h))), middle, penalties)

    def _recomputed(self, layer: Callable, *args):
        """Run a layer, which is computed again in the backward pass where that was asked for."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _embed_time(self, sample: Tensor, timesteps: Tensor, text: Tensor, added: dict | None) -> Tensor:
        emb = self.unet.time_embedding(self.unet.get_time_embed(sample=sample, timestep=timesteps))
        more = self.unet.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
        return emb if more is None else emb + more

    def _run(
        self,
        site: Site,
        h: Tensor,
        rows: Rows,
        size: torch.Size | None,
        attached: Sequence[Attached],
        penalty: Penalty | None,
        looks: Looks,
    ) -> tuple[Tensor, ...]:
        """Return activations after a layer, and the penalties of its self-attentions."""
        self.moving = bool(attached)
        if self.appearance is not None:
            self.appearance.now = looks
        layer, penalties = self.unet.get_submodule(site.diffusers), []
        if site.kind == "res":
            h = layer(h, rows.emb)
        elif site.kind == "transformer":
            watched = penalty if site.stage == "output" else None
            h, penalties = self._transformer(layer, h, site, rows, attached, watched)
        elif site.kind == "up":
            h = layer(h, size)
        else:
            h = layer(h)
        return after_layer(h, attached, site.name, rows.clip), *penalties

    def _resample(self, site: Site, h: Tensor, clip: Clip, then: Clip, attached: Sequence[Attached]) -> Tensor:
        if site.kind == "up":
            return double_frames(h, attached, site.name, clip, then)
        return halve_frames(h, attached, site.name, clip)

    def _transformer(
        self,
        layer: nn.Module,
        x: Tensor,
        site: Site,
        rows: Rows,
        attached: Sequence[Attached],
        penalty: Penalty | None,
    ) -> tuple[Tensor, list[Tensor]]:
        height, width = x.shape[-2:]
        linear, penalties = layer.use_linear_projection, []
        tokens = layer.norm(x) if linear else layer.proj_in(layer.norm(x))
        tokens = rearrange(tokens, "n c h w -> n (h w) c")
        tokens = layer.proj_in(tokens) if linear else tokens
        for block, name in zip(layer.transformer_blocks, site.blocks):
            if penalty:
                penalties.append(penalty(*queries_and_keys(block.attn1, block.norm1(tokens)), rows.clip.frames))
            tokens = run_block(block, tokens, name, rows, attached)
        tokens = layer.proj_out(tokens) if linear else tokens
        y = rearrange(tokens, "n (h w) c -> n c h w", h=height, w=width).contiguous()
        return (y if linear else layer.proj_out(y)) + x, penalties


def next_rate(site: Site, rows: Rows, finer: list[Rows]) -> Rows:
    """Return the rows behind a resize where the number of frames changes; `finer` keeps those to come back to."""
    if site.kind == "up":
        return finer.pop()
    finer.append(rows)
    return rows.thinned()


def run_block(block: nn.Module, tokens: Tensor, name: str, rows: Rows, attached: Sequence[Attached]) -> Tensor:
    """Run a transformer block, with what the inflations add to it; tokens `(clips * frames, pixels, channels)`."""
    clip, normed = rows.clip, block.norm1(tokens)
    plain = block.attn1(normed)
    tokens = tokens + after_self_attention(
        plain, normed, attached, f"{name}.attn1", clip, block.attn1, multi_head_attention
    )
    normed = block.norm2(tokens)
    plain = block.attn2(normed, encoder_hidden_states=rows.text)
    tokens = tokens + after_cross_attention(
        plain, normed, rows.text, rows.tokens, attached, f"{name}.attn2", clip, block.attn2
    )
    tokens = tokens + block.ff(block.norm3(tokens))
    return after_block(tokens, attached, name, clip)


def queries_and_keys(attention: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Return both, `(rows, heads, pixels, d)` each."""
    split = partial(rearrange, pattern="b n (heads d) -> b heads n d", heads=attention.heads)
    return split(attention.to_q(normed)), split(attention.to_k(normed))


def put_queries(unet: nn.Module, inflation: Inflation, sites: list[Site], attached: Callable[[], bool]) -> None:
    """Make the U-Net's query projections add what the inflation's queries say, where it is `attached`."""
    for name, part in _query_sites(inflation, sites):

        def added(layer, tokens, queries, part=part):
            return queries + part(*tokens) if attached() else queries

        unet.get_submodule(name).register_forward_hook(added)


def _query_sites(inflation: Inflation, sites: list[Site]) -> Iterator[tuple[str, nn.Module]]:
    for site in sites:
        for block in site.blocks:
            for attention in ("attn1", "attn2"):
                if part := inflation.at(f"{block}.{attention}", "queries"):
                    yield f"{block}.{attention}.to_q".replace(site.name, site.diffusers, 1), part
