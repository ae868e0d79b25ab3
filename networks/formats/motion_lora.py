"""AnimateDiff's motion LoRAs: low-rank changes of the attentions of a motion module, merged into an inflation, or as
the LoRAs of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..config import CrossFrames, InflationConfig, TemporalLora
from ..inflation import Inflation
from ..lora import Change, padded
from ..motion_file import MotionInfo
from ..sites import Site, Structure
from ..temporal_lora import Place, loras_in
from ..tensor_file import is_finite
from .modules import MODULE, SDXL, Tensors, check_exportable, module_names, module_tensors, sd15_like

FORMAT = "AnimateDiff motion LoRA"

LAYER = re.compile(
    MODULE.pattern + r"(?:temporal_transformer\.)?transformer_blocks\.0\.(?:attention_blocks\.([01])|attn([12]))\."
    r"(?:processor\.)?to_(q|k|v|out)(?:\.0)?(?:_lora\.|\.lora[_.])(down|A|up|B)\.weight"
)


NAME = "{module}.temporal_transformer.transformer_blocks.0.attention_blocks.{number}.processor.to_{projection}_lora"
"""As AnimateDiff's own files name a LoRA, those of its second version among them."""

Pairs = dict[tuple[str, int, str], tuple[Tensor, Tensor]]
"""Down and up by module, attention and letter."""


def is_motion_lora(modules: Tensors) -> bool:
    return any("lora" in name for name in modules)


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


def _pairs(lora: Tensors) -> Pairs:
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


def from_motion_lora(lora: Tensors) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return a motion LoRA as an inflation, of the highest of its ranks, with zeros where it changes nothing.

    What it was trained on top of it does not say.

    Raises:
        ValueError: it holds something else, or does not tell for which U-Net it is.
    """
    pairs = _pairs(lora)
    structure, middle = _structure(pairs)
    rank = max(len(down) for down, _ in pairs.values())
    config = InflationConfig(temporal_lora=TemporalLora(rank, middle=middle))
    info = MotionInfo(config, structure, schedule="linear", options={"format": FORMAT})
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Inflation(config, structure).state_dict().items()}
    kind = next(iter(pairs.values()))[0].dtype
    found = {name: torch.zeros(shape, dtype=kind) for name, shape in shapes.items()}
    sites = _attentions(_on(info))
    for (module, number, letter), (down, up) in pairs.items():
        if module not in sites:
            raise ValueError(f"it changes {module}, which no U-Net like SD1.5's has beside the others that it changes")
        name = Place(sites[module].name, "attention", number, letter).name
        found[f"{name}.down.weight"], found[f"{name}.up.weight"] = padded(down, up, rank)
    if wrong := next((name for name, shape in shapes.items() if found[name].shape != shape), None):
        raise ValueError(f"it changes {wrong.partition('.')[0]} by another number of channels than its level has")
    return info, found


def to_motion_lora(info: MotionInfo, tensors: Tensors) -> dict[str, Tensor]:
    """Return the LoRAs of an inflation on a motion module in the names of AnimateDiff's files, without its other parts.

    Raises:
        ValueError: it has none, or also such on attentions that AnimateDiff's modules do not have.
    """
    if info.config.temporal_lora is None:
        raise ValueError("it is no motion LoRA of AnimateDiff, and holds no temporal LoRA that could become one")
    on = _on(info)
    check_exportable(on, FORMAT)
    modules, made = module_names(on), {}
    for place, down, up in loras_in(tensors):
        name = NAME.format(module=modules[place.site], number=place.number, projection=place.projection)
        made |= {f"{name}.down.weight": down.clone(), f"{name}.up.weight": up.clone()}
    return made


def _on(info: MotionInfo) -> MotionInfo:
    """Return a description of what a file's LoRAs are on, as far as it is known."""
    lora = info.config.temporal_lora
    assert lora is not None
    in_blocks = CrossFrames() if lora.frame_attention else None
    return replace(info, config=InflationConfig(temporal=lora.temporal, frame_attention=in_blocks))


def _structure(pairs: Pairs) -> tuple[Structure, bool]:
    """Return the U-Net that a motion LoRA is for, and whether it is for a module with a middle block."""
    widths, units = {}, {}
    for (module, _, _), (down, _) in pairs.items():
        stage, level, _, unit = module.split(".") if not module.startswith("mid") else ("mid", "0", "", "0")
        if stage == "down_blocks":
            widths[int(level)] = down.shape[1]
            units[int(level)] = max(units.get(int(level), 0), int(unit) + 1)
    levels = range(len(widths))
    if set(widths) != set(levels) or not widths:
        raise ValueError("it does not change every level on the way down, so that the U-Net it is for cannot be told")
    if [widths[level] for level in levels] == SDXL:
        raise ValueError("it is a motion LoRA for SDXL; only those for SD1.5 can be used")
    middle = any(module.startswith("mid") for module, _, _ in pairs)
    return sd15_like([widths[level] for level in levels], [units[level] for level in levels]), middle
