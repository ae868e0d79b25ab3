"""Our own loop over ComfyUI's U-Net: the host's layers, and between them what the inflations add.

With nothing attached it is the host's own forward bit for bit, every patch that other packs set included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from torch import Tensor

from ..networks.clip import Clip, Rows
from ..networks.inflation import (
    Attached,
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
from ..networks.resampling import pool_rows
from ..networks.sites import stage_of


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
            optimized_attention,
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
    if not isinstance(layer, SpatialTransformer) or not any(
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
class Rate:
    """The frame rate at which the loop is: the `rows` of this rate, and those of the finer ones to come back to."""

    rows: Rows
    finer: list[Rows] = field(default_factory=list)

    def halve(self) -> None:
        self.finer.append(self.rows)
        self.rows = self.rows.thinned()

    def double(self) -> None:
        self.rows = self.finer.pop()

    @property
    def merged(self) -> int:
        """Return how many frames of the input one frame is at this rate."""
        return 2 ** len(self.finer)


def resample(h: Tensor, rate: Rate, attached: Sequence[Attached], site: str) -> Tensor:
    """Halve the frames after a down-resize, double them after an up-resize."""
    before = rate.rows.clip
    if stage_of(site) == "input":
        rate.halve()
        return halve_frames(h, attached, site, before)
    rate.double()
    return double_frames(h, attached, site, before, rate.rows.clip)


def announce(options: dict, given: dict, rate: Rate, rows: int) -> None:
    """Tell other packs' patches which frames they are given, where these are not all: the packs' own convention.

    Args:
        given: the options as they were before the first layer.
        rows: of the batch, at this rate.
    """
    options["original_shape"] = [rows, *given["original_shape"][1:]]
    told = given.get("ad_params")
    if rate.merged > 1:
        whole = rate.finer[0].clip
        clips = rows // rate.rows.clip.frames // len(given.get("cond_or_uncond", [0]))
        indices = [clip * whole.frames + i for clip in range(clips) for i in rate.rows.clip.indices]
        told = pack_window((told or {}).get("full_length", clips * whole.frames), indices)
    options.pop("ad_params", None)
    if told:
        options["ad_params"] = told


def pack_window(frames: int, indices: list[int]) -> dict:
    """Return `ad_params`: how packs that bring per-frame data look up which of a video's frames they are given."""
    return {"full_length": frames, "context_length": len(indices), "sub_idxs": indices}


def control_at(rate: Rate, control: dict | None, kind: str, rows: int) -> dict | None:
    """Return a ControlNet's residuals, of which the next one is pooled where it has a row for each of `rows` of the
    input."""
    if rate.merged > 1 and control and control.get(kind) and control[kind][-1] is not None:
        residual = control[kind][-1]
        if len(residual) == rows:
            control[kind][-1] = pool_rows(residual, rate.finer[0].clip.frames, rate.merged)
    return control


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
        for j, layer in enumerate(block):
            site, rows = f"{name}.{j}", self.rate.rows
            layer = inflated_layer(layer, site, self.attached, rows)
            h = forward_timestep_embed([layer], h, rows.emb, rows.text, self.options, output_shape, **self.video)
            h = after_layer(h, self.attached, site, rows.clip)
            if resampled(self.attached, site):
                h = resample(h, self.rate, self.attached, site)
                announce(self.options, self.given, self.rate, len(h))
        return h

    def _add_control(self, h: Tensor, kind: str) -> Tensor:
        return apply_control(h, control_at(self.rate, self.control, kind, self.size), kind)


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
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
    for patch in options.get("patches", {}).get("emb_patch", []):
        emb = patch(emb, unet.model_channels, options)
    return emb if y is None else emb + unet.label_emb(y)
