"""Our own loop over ComfyUI's U-Net: the host's layers, and between them what the inflations add.

With nothing attached it is the host's own forward bit for bit, every patch that other packs set included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import apply_control, forward_timestep_embed, timestep_embedding
from torch import Tensor

from ..networks.clip import Clip
from ..networks.inflation import Attached, after_block, after_self_attention, after_unit


@dataclass(frozen=True)
class Rows:
    """What a layer gets beside its activations: a row for each frame at this layer's frame rate."""

    clip: Clip
    emb: Tensor
    context: Tensor | list[Tensor] | None


@dataclass
class InflatedBlock:
    """A transformer block of the host together with what the inflations add to it.

    The self-attention is extended by patches around those of other packs: the first sees the tokens before anybody
    changed them, the last adds to what everybody else made of the output. The slots for replacing stay free.
    """

    block: torch.nn.Module
    name: str
    attached: Sequence[Attached]
    clip: Clip

    def __call__(self, x: Tensor, context=None, transformer_options: dict = {}, **kwargs) -> Tensor:  # noqa: B006
        tokens = []

        def keep(n, context_attn1, value_attn1, extra_options):
            tokens.append(n)
            return n, context_attn1, value_attn1

        def extend(plain, extra_options):
            return self._extend(plain, tokens[0], transformer_options)

        patches = transformer_options.get("patches", {})
        patches = {
            **patches,
            "attn1_patch": [keep, *patches.get("attn1_patch", [])],
            "attn1_output_patch": [*patches.get("attn1_output_patch", []), extend],
        }
        x = self.block(x, context=context, transformer_options={**transformer_options, "patches": patches}, **kwargs)
        return after_block(x, self.attached, self.name, self.clip)

    def _extend(self, plain: Tensor, tokens: Tensor, transformer_options: dict) -> Tensor:
        attention = partial(
            optimized_attention,
            attn_precision=self.block.attn1.attn_precision,
            transformer_options=transformer_options,
        )
        site = f"{self.name}.attn1"
        return after_self_attention(plain, tokens, self.attached, site, self.clip, self.block.attn1, attention)


def inflated_layer(layer: torch.nn.Module, name: str, attached: Sequence[Attached], clip: Clip) -> torch.nn.Module:
    """The layer itself, or a shallow copy of a transformer whose blocks are inflated; the host's own is untouched."""
    parts = [a.inflation.config for a in attached]
    if not isinstance(layer, SpatialTransformer) or not any(c.frames or c.memory for c in parts):
        return layer
    inflated = copy.copy(layer)
    # an entry in __dict__ hides the registered child without changing the dictionary that both copies share
    inflated.__dict__["transformer_blocks"] = [
        InflatedBlock(block, f"{name}.transformer_blocks.{k}", attached, clip)
        for k, block in enumerate(layer.transformer_blocks)
    ]
    return inflated


def run_unet(
    unet: torch.nn.Module,
    attached: Sequence[Attached],
    clip: Clip,
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | list[Tensor] | None = None,
    y: Tensor | None = None,
    control: dict | None = None,
    transformer_options: dict = {},  # noqa: B006
    **kwargs,
) -> Tensor:
    """The forward of ComfyUI's `UNetModel` with inflations attached; arguments and result as there."""
    options = transformer_options
    options["original_shape"], options["transformer_index"] = list(x.shape), 0
    patches = options.get("patches", {})
    video = {
        "time_context": kwargs.get("time_context"),
        "num_video_frames": kwargs.get("num_video_frames", unet.default_num_video_frames),
        "image_only_indicator": kwargs.get("image_only_indicator"),
    }
    rows = Rows(clip, _embed_time(unet, x, timesteps, y, options), context)

    def run(block, name, h, output_shape=None):
        for j, layer in enumerate(block):
            site = f"{name}.{j}"
            layer = inflated_layer(layer, site, attached, rows.clip)
            h = forward_timestep_embed([layer], h, rows.emb, rows.context, options, output_shape, **video)
            h = after_unit(h, attached, site, rows.clip)
        return h

    h, skips = x, []
    for i, block in enumerate(unet.input_blocks):
        options["block"] = ("input", i)
        h = apply_control(run(block, f"input_blocks.{i}", h), control, "input")
        for patch in patches.get("input_block_patch", []):
            h = patch(h, options)
        skips.append(h)
        for patch in patches.get("input_block_patch_after_skip", []):
            h = patch(h, options)

    options["block"] = ("middle", 0)
    if unet.middle_block is not None:
        h = run(unet.middle_block, "middle_block", h)
    h = apply_control(h, control, "middle")
    for patch in patches.get("middle_block_after_patch", []):
        seen = {"h": h, "x": x, "emb": rows.emb, "context": context, "y": y, "timesteps": timesteps}
        h = patch({**seen, "transformer_options": options})["h"]

    for i, block in enumerate(unet.output_blocks):
        options["block"] = ("output", i)
        skip = apply_control(skips.pop(), control, "output")
        for patch in patches.get("output_block_patch", []):
            h, skip = patch(h, skip, options)
        h = h if skip is None else torch.cat([h, skip], dim=1)
        del skip  # nothing refers to it while the block runs
        h = run(block, f"output_blocks.{i}", h, skips[-1].shape if skips else None)
    h = h.type(x.dtype)
    return unet.id_predictor(h) if unet.predict_codebook_ids else unet.out(h)


def _embed_time(unet: torch.nn.Module, x: Tensor, timesteps: Tensor, y: Tensor | None, options: dict) -> Tensor:
    if (y is not None) != (unet.num_classes is not None):
        raise ValueError("This model needs its class or size conditioning (y) and got none, or the other way round.")
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
    for patch in options.get("patches", {}).get("emb_patch", []):
        emb = patch(emb, unet.model_channels, options)
    return emb if y is None else emb + unet.label_emb(y)
