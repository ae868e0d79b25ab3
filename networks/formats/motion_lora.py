"""AnimateDiff's motion LoRAs: low-rank changes of the attentions of a motion module, merged into an inflation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..motion_file import MotionInfo
from ..sites import Site
from ..tensor_file import is_finite
from .modules import MODULE, Tensors, module_names, module_tensors

LAYER = re.compile(
    MODULE.pattern + r"(?:temporal_transformer\.)?transformer_blocks\.0\.(?:attention_blocks\.([01])|attn([12]))\."
    r"(?:processor\.)?to_(q|k|v|out)(?:\.0)?(?:_lora\.|\.lora[_.])(down|A|up|B)\.weight"
)


def is_motion_lora(modules: Tensors) -> bool:
    return any("lora" in name for name in modules)


@dataclass(frozen=True, eq=False)
class Change:
    """What a motion LoRA adds to rows of one of an inflation's parameters, `up` · `down`, from row `start` on."""

    parameter: str
    start: int
    down: Tensor
    up: Tensor

    @property
    def rows(self) -> int:
        return len(self.up)


def changes(info: MotionInfo, lora: Tensors) -> Iterator[Change]:
    """Yield what a motion LoRA changes in a motion module, as changes of our parameters.

    Raises:
        ValueError: it holds something else, or changes what the module does not have.
    """
    sites = _attentions(info)
    for (module, attention, letter), (down, up) in _pairs(lora).items():
        if module not in sites:
            raise ValueError(f"it changes {module}, which the motion module does not have")
        channels, given = sites[module].width, (len(up), down.shape[1])
        if given != (channels, channels):
            raise ValueError(f"it changes {module} by {given} numbers; there are {(channels, channels)}")
        kind = "out" if letter == "out" else "qkv"
        name = f"{sites[module].name}.attention.attentions.{attention}.{kind}.weight"
        yield Change(name, channels * max("qkv".find(letter), 0), down, up)


def _attentions(info: MotionInfo) -> dict[str, Site]:
    """Return our site of each of AnimateDiff's modules that an inflation has, by their name of it."""
    temporal, sites = info.config.temporal, {site.name: site for site in info.structure.sites()}
    if temporal is None:
        return {}
    named = ((module, sites[name]) for name, module in module_names(info).items())
    return {module: site for module, site in named if "attention" in temporal.at_level(site.level)}


def merged(info: MotionInfo, tensors: Tensors, lora: Tensors, strength: float = 1.0) -> dict[str, Tensor]:
    """Return the tensors of an inflation with `strength` times up · down of a motion LoRA added to its attentions.

    Source: AnimateDiff (Guo et al. 2023, arXiv 2307.04725), section 4.3; its files have no alpha
    beside rank and strength.

    Raises:
        ValueError: as `changes`, or the LoRA makes numbers that the module's kind of number cannot hold.
    """
    changed = dict(tensors)
    for change in changes(info, lora):
        changed[change.parameter] = _added(changed[change.parameter], change, strength)
    return changed


def _added(weight: Tensor, change: Change, strength: float) -> Tensor:
    new = weight.float().clone()
    new[change.start : change.start + change.rows] += strength * change.up.float() @ change.down.float()
    new = new.to(weight.dtype)
    if not is_finite(new):
        raise ValueError(
            f"it makes numbers of {change.parameter} that are too large for {weight.dtype}; lower its strength"
        )
    return new


def _pairs(lora: Tensors) -> dict[tuple[str, int, str], tuple[Tensor, Tensor]]:
    """Return down and up of every matrix that is changed, by module, attention and letter."""
    found = {}
    for name, tensor in module_tensors(lora).items():
        key, side = _place(name)
        found.setdefault(key, {})[side] = tensor
    if not found:
        raise ValueError("it is no motion LoRA: it changes no motion module")
    for (module, _, letter), sides in found.items():
        shapes = {side: tensor.shape for side, tensor in sides.items() if tensor.ndim == 2}
        if len(shapes) < 2 or shapes["down"][0] != shapes["up"][1]:
            raise ValueError(f"its two matrices for to_{letter} in {module} do not belong together")
    return {key: (sides["down"], sides["up"]) for key, sides in found.items()}


def _place(name: str) -> tuple[tuple[str, int, str], str]:
    match = LAYER.fullmatch(name)
    if match is None:
        raise ValueError(f"it holds {name}, which no motion LoRA of AnimateDiff has")
    module, zero_based, one_based, letter, side = match.groups()
    attention = int(zero_based) if zero_based else int(one_based) - 1
    return (module, attention, letter), {"A": "down", "B": "up"}.get(side, side)
