"""Our own loop over ComfyUI's U-Net: the host's layers, and between them what the inflations add.

With nothing attached it is the host's own forward bit for bit, every patch that other packs set included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from comfy.ldm.modules import attention as host_attention
from comfy.ldm.modules.diffusionmodules import openaimodel as host  # other packs replace functions on these modules
from torch import Tensor

from ..networks.clip import Clip, Rows
from ..networks.inflation import (
    Attached,
    after_block,
    after_cross_attention,
    after_layer,
    after_self_attention,
    before_unet,
    embedded,
    frame_tokens,
    resampled,
    resampled_text,
)
from .rates import Rate, announce, control_at, resample, told_of_halving


@dataclass
class InflatedBlock:
    """A transformer block of the host together with what the inflations add to it.

    The attentions are extended by patches around those of other packs: the first sees the tokens before anybody
    changed them, the last adds to what everybody else made of the output. The slots for replacing stay free.
    """

    block: torch.nn.Module
    name: str
    attached: Sequence[Attached]
    rows: Rows

    def __call__(self, x: Tensor, context=None, transformer_options: dict = {}, **kwargs) -> Tensor:  # noqa: B006
        patches = dict(transformer_options.get("patches", {}))
        surround(patches, "attn1", partial(self._after_self_attention, transformer_options))
        if any(tokens is not None for tokens in self.rows.tokens):
            surround(patches, "attn2", self._after_cross_attention)
        x = self.block(x, context=context, transformer_options={**transformer_options, "patches": patches}, **kwargs)
        return after_block(x, self.attached, self.name, self.rows.clip)

    def _after_self_attention(self, transformer_options: dict, plain: Tensor, tokens: Tensor, _) -> Tensor:
        attention = partial(
            host_attention.optimized_attention,
            attn_precision=self.block.attn1.attn_precision,
            transformer_options=transformer_options,
        )
        site, clip = f"{self.name}.attn1", self.rows.clip
        return after_self_attention(plain, tokens, self.attached, site, clip, self.block.attn1, attention)

    def _after_cross_attention(self, plain: Tensor, tokens: Tensor, text: Tensor) -> Tensor:
        site, rows = f"{self.name}.attn2", self.rows
        return after_cross_attention(plain, tokens, text, rows.tokens, self.attached, site, rows.clip, self.block.attn2)


def surround(patches: dict, attention: str, extend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Put a pair of patches around all others: `extend` gets the attention's output, its input and its context."""
    seen = []

    def keep(n, context, value, extra_options):
        seen[:] = n, context
        return n, context, value

    def add(plain, extra_options):
        return extend(plain, *seen)

    patches[f"{attention}_patch"] = [keep, *patches.get(f"{attention}_patch", [])]
    patches[f"{attention}_output_patch"] = [*patches.get(f"{attention}_output_patch", []), add]


def inflated_layer(layer: torch.nn.Module, name: str, attached: Sequence[Attached], rows: Rows) -> torch.nn.Module:
    """Return the layer itself, or a shallow copy of a transformer whose blocks are inflated; the host's own is
    untouched."""
    parts = [a.inflation.config for a in attached]
    if not isinstance(layer, host_attention.SpatialTransformer) or not any(
        c.frame_attention or c.recurrence or c.tokens for c in parts
    ):
        return layer
    inflated = copy.copy(layer)
    # an entry in __dict__ hides the registered child without changing the dictionary that both copies share
    inflated.__dict__["transformer_blocks"] = [
        InflatedBlock(block, f"{name}.transformer_blocks.{k}", attached, rows)
        for k, block in enumerate(layer.transformer_blocks)
    ]
    return inflated


@dataclass
class BlockStandIn:
    """A block of the host's U-Net with further steps between its layers, which are called as plain layers are.

    It goes through the host's own function as the block itself would, for other packs replace that function, and look
    at attributes that they have put on the block.
    """

    block: torch.nn.Module
    steps: Sequence[Callable]

    def __iter__(self) -> Iterator[Callable]:
        return iter(self.steps)

    def __getattr__(self, name: str):
        return getattr(self.block, name)


@dataclass
class Pass:
    """One forward on its way through the host's U-Net.

    `options` are those that layers are given, `given` a copy from before the first; `size` is the number of rows of
    the input, `video` what the host's own video layers ask for.
    """

    unet: torch.nn.Module
    attached: Sequence[Attached]
    rate: Rate
    size: int
    control: dict | None
    options: dict
    given: dict
    video: dict

    def patches(self, place: str) -> list[Callable]:
        """Return what other packs have put at a place."""
        return self.given.get("patches", {}).get(place, [])

    def down(self, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the input blocks; return beside their output what the output blocks will want of each."""
        skips = []
        for i, block in enumerate(self.unet.input_blocks):
            self.options["block"] = ("input", i)
            h = self._add_control(self._run(block, f"input_blocks.{i}", h), "input")
            for patch in self.patches("input_block_patch"):
                h = patch(h, self.options)
            skips.append(h)
            for patch in self.patches("input_block_patch_after_skip"):
                h = patch(h, self.options)
        return h, skips

    def middle(self, h: Tensor, **inputs) -> Tensor:
        """Run the middle block; `inputs` are those of the U-Net, for patches."""
        self.options["block"] = ("middle", 0)
        if self.unet.middle_block is not None:
            h = self._run(self.unet.middle_block, "middle_block", h)
        h = self._add_control(h, "middle")
        for patch in self.patches("middle_block_after_patch"):
            rows = self.rate.rows
            seen = {"h": h, "emb": rows.emb, "context": rows.text, "transformer_options": self.options, **inputs}
            h = patch(seen)["h"]
        return h

    def up(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        """Run the output blocks, which use up the skips."""
        for i, block in enumerate(self.unet.output_blocks):
            self.options["block"] = ("output", i)
            skip = self._add_control(skips.pop(), "output")
            for patch in self.patches("output_block_patch"):
                h, skip = patch(h, skip, self.options)
            h = h if skip is None else torch.cat([h, skip], dim=1)
            del skip  # nothing refers to it while the block runs
            h = self._run(block, f"output_blocks.{i}", h, skips[-1].shape if skips else None)
        return h

    def _run(self, block, name: str, h: Tensor, output_shape=None) -> Tensor:
        rows, steps = self.rate.rows, []
        for j, layer in enumerate(block):
            site = f"{name}.{j}"
            steps += [inflated_layer(layer, site, self.attached, rows), partial(self._after, site)]
        stand_in = BlockStandIn(block, steps)
        with told_of_halving(self.rate.merged):
            return host.forward_timestep_embed(
                stand_in, h, rows.emb, rows.text, self.options, output_shape, **self.video
            )

    def _after(self, site: str, h: Tensor) -> Tensor:
        """Add what belongs behind a layer, of which a resize is the last of its block: rows change there."""
        h = after_layer(h, self.attached, site, self.rate.rows.clip)
        if resampled(self.attached, site):
            h = resample(h, self.rate, self.attached, site)
            announce(self.options, self.given, self.rate, len(h))
        return h

    def _add_control(self, h: Tensor, kind: str) -> Tensor:
        return host.apply_control(h, control_at(self.rate, self.control, kind, self.size), kind)


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
    """Run the forward of ComfyUI's `UNetModel` with inflations attached; arguments and result as there."""
    options = transformer_options
    options["original_shape"], options["transformer_index"] = list(x.shape), 0
    given = dict(options)
    video = {
        "time_context": kwargs.get("time_context"),
        "num_video_frames": kwargs.get("num_video_frames", unet.default_num_video_frames),
        "image_only_indicator": kwargs.get("image_only_indicator"),
    }
    text = context[0] if isinstance(context, list) else context
    tokens = tuple(frame_tokens(text, attached, clip))
    emb = embedded(_embed_time(unet, x, timesteps, y, options), attached, clip)
    rate = Rate(Rows(clip, emb, resampled_context(context, attached, clip), tokens))
    forward = Pass(unet, attached, rate, len(x), control, options, given, video)

    h, skips = forward.down(before_unet(x, attached, clip))
    h = forward.middle(h, x=x, y=y, timesteps=timesteps)
    h = forward.up(h, skips).type(x.dtype)
    return unet.id_predictor(h) if unet.predict_codebook_ids else unet.out(h)


def resampled_context(context: Tensor | list[Tensor] | None, attached: Sequence[Attached], clip: Clip):
    """Return the prompts, of each transformer block where they have their own, as `resampled_text` does."""
    if isinstance(context, list):
        return [resampled_text(text, attached, clip) for text in context]
    return None if context is None else resampled_text(context, attached, clip)


def _embed_time(unet: torch.nn.Module, x: Tensor, timesteps: Tensor, y: Tensor | None, options: dict) -> Tensor:
    if (y is not None) != (unet.num_classes is not None):
        raise ValueError("This model needs its class or size conditioning (y) and got none, or the other way round.")
    emb = unet.time_embed(host.timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
    for patch in options.get("patches", {}).get("emb_patch", []):
        emb = patch(emb, unet.model_channels, options)
    return emb if y is None else emb + unet.label_emb(y)
