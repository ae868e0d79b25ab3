"""Everything that a motion file holds: the modules that turn an image U-Net into a video U-Net, keyed by site.

A host runs the frozen U-Net and calls the functions below, in this order in every forward:

1. `frame_tokens`, once, of every row's prompt, then `resampled_text` of the prompts; `embedded`, once, of every row's
   time embedding. Where frames are halved the host keeps the rows of the frames that stay.
2. `before_unet`, once, of the U-Net's input.
3. For every layer in the order of execution, a transformer's blocks one by one:
   `after_self_attention` of each attn1, `after_cross_attention` of each attn2, `after_block` of each block;
   then `after_layer` of the layer's output;
   then, after a resize where `resampled`, `halve_frames` on the way down and `double_frames` on the way up. From there
   on all rows (time embedding, prompts, tokens) are those of the new frame rate.
4. On the way down what the output blocks will want of a unit, or of a resize, is stored after all of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .asked import NOTHING, Asked
from .building import SAMPLE, TEXT, TIME, build
from .clip import Clip, thin_rows
from .config import InflationConfig
from .keyframes import Keyframes, value_at
from .kinds import BLOCKS
from .mapping import pad_channels
from .prior import for_frames
from .recurrent import Attention, Projections
from .resampler import resampled_rows
from .resampling import repeat_rows
from .sites import Structure
from .tokens import added_by_tokens, distinct_prompts, tokens_by_row


class Inflation(nn.Module):
    """The modules of `config` at the sites of a U-Net of this `structure`.

    Its state dict is what a motion file holds: `<site>.<part>.<parameter>`. A new inflation changes nothing, because
    each part adds something that starts at zero; where frames are halved it changes none of those that stay, and
    tokens start with a tenth of the weight of the prompt's. Only a resampler of prompts has to be trained to be of
    use. It knows neither host: a host runs the frozen U-Net and calls the functions below at its sites.

    Args:
        ops: where layers come from: `torch.nn`, or `comfy.ops.manual_cast` inside ComfyUI.

    Raises:
        ValueError: the U-Net has not the levels that the config speaks of, or not the channels that it needs.
    """

    def __init__(self, config: InflationConfig, structure: Structure, ops=nn):
        super().__init__()
        config.check(structure)
        self.config, self.structure = config, structure
        self._parts: dict[str, nn.Module] = {}
        self._levels: dict[str, int | None] = {}
        for site, part, level, module in build(config, structure, ops):
            _register(self, f"{site}.{part}", module)
            self._parts[f"{site}.{part}"], self._levels[f"{site}.{part}"] = module, level

    def at(self, site: str, part: str) -> nn.Module | None:
        """Return the module at a site, None where this inflation has none."""
        return self._parts.get(f"{site}.{part}")

    def level_of(self, site: str, part: str) -> int | None:
        """Return the level of the U-Net that a module belongs to, None before it; of a resampling whose frames it
        halves."""
        return self._levels[f"{site}.{part}"]

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every `<site>.<part>` with its module."""
        yield from self._parts.items()


MERGED = "queries", "temporal_lora"
"""Parts that change frozen weights, of the U-Net and of another inflation."""


def without_merged(config: InflationConfig) -> InflationConfig:
    """Leave out what hosts merge into frozen weights instead of running it."""
    return replace(config, **dict.fromkeys(MERGED))


def _register(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(name, module)


@dataclass(frozen=True)
class Attached:
    """One inflation in use. Strengths are factors of what its parts add; 0 is the frozen model, 1 as trained.

    `recurrence` is of the recurrent attention, `mapping` of the mapping network, `temporal` of all others. `levels` are
    further factors at each level of the U-Net, finest first; none: 1. `keyframes` are further factors (frame, factor)
    over the frames of the whole video, linear between, constant before the first and after the last; none: 1. `asked`:
    what its guidance, its prior and its condition are given.
    """

    inflation: Inflation
    temporal: float = 1.0
    recurrence: float = 1.0
    mapping: float = 1.0
    levels: tuple[float, ...] = ()
    keyframes: Keyframes = ()
    asked: Asked = NOTHING

    def whole(self, clip: Clip) -> int:
        """Return how many frames the whole clips have that it is asked about."""
        return self.asked.frames or clip.frames

    def strength(self, site: str, part: str) -> float:
        """Return the factor of the module at a site."""
        strength = {"recurrence": self.recurrence, "mapping": self.mapping}.get(part, self.temporal)
        level = self.inflation.level_of(site, part)
        return strength * (self.levels[level] if self.levels and level is not None else 1.0)

    def factor(self, frame: int) -> float:
        """Return the factor of a frame of the whole video, by the keyframes."""
        return value_at(self.keyframes, frame)


def _active(attached: Iterable[Attached], site: str, part: str) -> Iterator[tuple[Attached, nn.Module]]:
    for a in attached:
        module = a.inflation.at(site, part)
        if module is not None and a.strength(site, part):
            yield a, module


def _add(out: Tensor, added: Tensor | None, a: Attached, site: str, part: str, clip: Clip) -> Tensor:
    """Add what a module has to say to `out`, rows `(clips * frames, ...)`, by its strength."""
    if added is None:
        return out
    if a.keyframes:
        factors = added.new_tensor([a.factor(frame) for frame in clip.indices]).repeat(len(added) // clip.frames)
        added = added * factors.view(-1, *[1] * (added.ndim - 1))
    return torch.add(out, added, alpha=a.strength(site, part))


def before_unet(sample: Tensor, attached: Iterable[Attached], clip: Clip) -> Tensor:
    """Return the U-Net's input `(clips * frames, 4 or more, height, width)`, with what all mapping networks add.

    Each sees the same latents; channels behind the first four are not theirs.
    """
    out = sample
    for a, module in _active(attached, SAMPLE, "mapping"):
        added = pad_channels(module(sample[:, :4], clip.frames), sample)
        out = _add(out, added, a, SAMPLE, "mapping", clip)
    return out


def embedded(emb: Tensor, attached: Iterable[Attached], clip: Clip) -> Tensor:
    """Return the time embedding `(clips * frames, channels)` with what all guidance adds for each frame."""
    out, attached = emb, tuple(attached)
    for part, given in (("motion", "motion"), ("appearance", "similarity")):
        for a, module in _active(attached, TIME, part):
            rows = module(getattr(a.asked, given), a.whole(clip), clip.indices, emb)
            out = _add(out, None if rows is None else for_frames(rows, len(emb)), a, TIME, part, clip)
    return out


def resampled_text(
    text: Tensor, attached: Iterable[Attached], clip: Clip, prompts: Sequence[int] | None = None
) -> Tensor:
    """Return the prompts `(clips * frames, tokens, channels)` that cross-attentions see: as they are, or resampled.

    Args:
        prompts: as in `frame_tokens`.

    Raises:
        ValueError: two inflations would resample them.
    """
    resamplers = [module for _, module in _active(attached, TEXT, "resampler")]
    if not resamplers:
        return text
    if len(resamplers) > 1:
        raise ValueError("Two motion files of this model resample the prompt, as HiGen's release does; attach one.")
    return resampled_rows(resamplers[0], text, clip.frames, prompts or distinct_prompts(text, clip.frames))


def after_layer(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    """Return activations `(clips * frames, channels, height, width)` after a layer, with what is added there.

    Priors and conditions come first. Each temporal block sees the same activations, whatever their order.
    """
    attached = tuple(attached)
    out = x = _with_stems(x, attached, site, clip)
    for kind in BLOCKS:
        for a, module in _active(attached, site, kind):
            out = _add(out, module(x, clip.frames), a, site, kind, clip)
    return out


def _with_stems(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    out = x
    for a, module in _active(attached, site, "prior"):
        out = _add(out, module(x, a.asked.prior, clip.frames, a.whole(clip)), a, site, "prior", clip)
    for a, module in _active(attached, site, "condition"):
        out = _add(out, module(x, a.asked.condition, a.whole(clip), clip.indices), a, site, "condition", clip)
    return out


def resampled(attached: Iterable[Attached], site: str) -> bool:
    """Tell whether the number of frames changes after this layer, a resize of the U-Net."""
    return any(True for _ in _active(attached, site, "resampling"))


def halve_frames(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip) -> Tensor:
    """Keep frames 0, 2, 4, … of activations after a down-resize, with what the convolutions of all inflations add.

    Source: Lumiere (Bar-Tal et al. 2024, arXiv 2401.12945), section 3.1 and appendix B: a convolution that starts as
    the identity, of which every second frame is kept.
    """
    out, thinned = thin_rows(x, clip.frames), clip.thinned()
    for a, module in _active(attached, site, "resampling"):
        out = _add(out, module(x, clip.frames), a, site, "resampling", thinned)
    return out


def double_frames(x: Tensor, attached: Iterable[Attached], site: str, clip: Clip, finer: Clip) -> Tensor:
    """Repeat every frame of activations after an up-resize, with what the convolutions of all inflations add.

    Args:
        clip, finer: the frames of `x`, and those that there were before they were halved.
    """
    x = repeat_rows(x, clip.frames, finer.frames)
    out = x
    for a, module in _active(attached, site, "resampling"):
        out = _add(out, module(x, finer.frames), a, site, "resampling", finer)
    return out


def after_block(tokens: Tensor, attached: Iterable[Attached], block: str, clip: Clip) -> Tensor:
    """Return tokens `(clips * frames, pixels, channels)` after a transformer block, with what all inflations add."""
    out = tokens
    for a, module in _active(attached, block, "frame_attention"):
        out = _add(out, module(tokens, clip.frames), a, block, "frame_attention", clip)
    return out


def after_self_attention(
    plain: Tensor,
    tokens: Tensor,
    attached: Iterable[Attached],
    site: str,
    clip: Clip,
    project: Projections,
    attention: Attention,
) -> Tensor:
    """Return the output of the self-attention `site` for normalised `tokens`, with what all recurrences add."""
    out = plain
    for a, module in _active(attached, site, "recurrence"):
        added = module(tokens, plain, project, attention, clip.frames)
        out = _add(out, added, a, site, "recurrence", clip)
    return out


def frame_tokens(
    text: Tensor, attached: Sequence[Attached], clip: Clip, prompts: Sequence[int] | None = None
) -> list[Tensor | None]:
    """Return the tokens that each inflation has for each row of `text`, `(clips * frames, tokens, channels)`.

    Args:
        prompts: which rows have the same prompt, a number for each; None: they are compared, which waits for the GPU
            and needs tensors with data.
    """
    modules = [a.inflation.at(TEXT, "tokens") if a.temporal else None for a in attached]
    if prompts is None and any(module is not None for module in modules):
        prompts = distinct_prompts(text, clip.frames)
    return [None if module is None else tokens_by_row(module, text, clip.frames, prompts) for module in modules]


def after_cross_attention(
    plain: Tensor,
    normed: Tensor,
    text: Tensor,
    tokens: Sequence[Tensor | None],
    attached: Sequence[Attached],
    site: str,
    clip: Clip,
    project: Projections,
) -> Tensor:
    """Return the output of the cross-attention `site` for its normalised input and `text`, with what all frame-wise
    tokens add.

    Args:
        tokens: what `frame_tokens` returned, at the frames of `clip`.
    """
    out = plain
    for a, rows in zip(attached, tokens):
        if rows is not None and a.strength(site, "tokens"):
            added = added_by_tokens(project, normed, text, rows, a.inflation.at(site, "tokens")(normed))
            out = _add(out, added, a, site, "tokens", clip)
    return out
