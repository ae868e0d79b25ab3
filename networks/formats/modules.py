"""The tree of motion modules that AnimateDiff and diffusers share, to and from the temporal blocks of an inflation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import TypeVar

import torch
from torch import Tensor

from ..config import InflationConfig, Temporal
from ..frame_attention import NormScope, frame_positions
from ..inflation import Inflation
from ..motion_file import MotionInfo
from ..sites import Level, Structure

Tensors = Mapping[str, Tensor]
Shapes = Mapping[str, Sequence[int]]
Take = Callable[[str], Tensor]
T = TypeVar("T")

MODULE = re.compile(r"((?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.motion_modules\.\d+)\.")
SDXL = [320, 640, 1280]
MOST_POSITIONS = 64
"""Length of the table where a file has none: AnimateLCM's, whose files leave out what can be computed."""


@dataclass(frozen=True)
class Format:
    """A program's names for what lies in a motion module.

    `layers` are our names and theirs; of an attention theirs is the part before `.to_q`. `tables` are the positions
    that they store and we compute. `norm_scope` is what their GroupNorm takes its statistics of.
    """

    name: str
    layers: Mapping[str, str]
    tables: tuple[str, ...]
    norm_scope: NormScope

    def names(self, ours: str) -> list[str]:
        """Return their names for one of our parameters, whose rows they divide evenly."""
        layer, _, kind = ours.rpartition(".")
        if layer.endswith(".qkv"):
            return [f"{self.layers[layer]}.to_{letter}.weight" for letter in "qkv"]
        return [f"{self.layers[layer]}.{kind}"]


def module_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors of motion modules without what stands before their names; the rest of a checkpoint is left
    out."""
    found = [(name, match) for name in tensors if (match := MODULE.search(name))]
    modules = {name[match.start() :]: tensors[name] for name, match in found}
    if len(modules) < len(found):
        raise ValueError("it holds its motion modules twice")
    return modules


def from_modules(
    tensors: Tensors, form: Format, heads: int = 8, take: Take | None = None
) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return an inflation of nothing but temporal blocks, from what `module_tensors` returns.

    Args:
        take: how a tensor is got by its name in the end: with `pop` of `tensors` a large file is not in memory twice.

    Raises:
        ValueError: a tensor is missing, left over or of another shape, or the positions are not what we compute.
    """
    tables = {name: tensor for name, tensor in tensors.items() if name.endswith(form.tables)}
    learned = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in tables}
    middle = any(name.startswith("mid_block") for name in learned)
    config = InflationConfig(temporal=Temporal(heads, norm_scope=form.norm_scope, middle=middle))
    # no file says what AnimateDiff's modules were trained on: a schedule linear in beta
    info = MotionInfo(config, _structure(learned, form), schedule="linear", positions=_length(tables))
    parts = _parts(info, form)
    _check(learned, parts)
    take = take or tensors.__getitem__
    return info, {ours: _joined([take(name) for name in theirs]) for ours, theirs in parts.items()}


def _joined(rows: list[Tensor]) -> Tensor:
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def to_modules(info: MotionInfo, tensors: Tensors, form: Format) -> dict[str, Tensor]:
    """Return the inverse of `from_modules`, without tables of positions.

    Raises:
        ValueError: the inflation holds what the format cannot say.
    """
    check_exportable(info, form.name)
    modules = {}
    for ours, theirs in _parts(info, form).items():
        modules |= {name: rows.clone() for name, rows in zip(theirs, tensors[ours].chunk(len(theirs)))}
    return modules


def length_of(info: MotionInfo) -> int:
    """Return the length of the table of positions, that is how many frames other programs can make with the file."""
    return max(info.positions or MOST_POSITIONS, info.frames)


def tables(info: MotionInfo, tensors: Tensors, form: Format) -> dict[str, Tensor]:
    """Return the positions that a program wants in its files beside what `to_modules` returns."""
    made = {}
    for site, module in module_names(info).items():
        weight = tensors[f"{site}.attention.norm.weight"]
        table = frame_positions(length_of(info), len(weight), weight.float()).to(weight.dtype)
        made |= {f"{module}.{name}": table[None].clone() for name in form.tables}
    return made


def sd15_like(widths: list[int], units: list[int]) -> Structure:
    """Return a U-Net built as SD1.5 is, of levels that have this width and so many units on the way down.

    Motion modules do not say what lies between them: there is one unit more on the way up, every unit has one
    transformer except at the coarsest level, the middle has one, and the text is 768 wide.
    """
    depths = [1] * (len(widths) - 1) + [0]
    return Structure(tuple(Level(w, (d,) * n, (d,) * (n + 1)) for w, n, d in zip(widths, units, depths)), 1, 768)


def _structure(shapes: Shapes, form: Format) -> Structure:
    modules = {MODULE.match(name).group(1) for name in shapes}

    def number_of(name: str) -> int:
        return next(n for n in count() if name.format(n) not in modules)

    levels = range(number_of("down_blocks.{}.motion_modules.0"))
    norms = [f"down_blocks.{i}.motion_modules.0.{form.layers['norm']}.weight" for i in levels]
    if missing := [name for name in norms or ["down_blocks.0.motion_modules.0"] if name not in shapes]:
        raise ValueError(f"it lacks {missing[0]}")
    widths = [prod(shapes[name]) for name in norms]
    if widths == SDXL:
        raise ValueError("it is a motion module for SDXL; only those for SD1.5 can be used")
    return sd15_like(widths, [number_of(f"down_blocks.{i}.motion_modules.{{}}") for i in levels])


def module_names(info: MotionInfo) -> dict[str, str]:
    """Return our site of each motion module and their path of it."""
    sites = [site for site in info.structure.sites() if site.ends_unit]
    kept = [site for site in sites if info.config.temporal.middle or site.stage != "middle"]
    return {site.name: re.sub("attentions|resnets", "motion_modules", site.diffusers) for site in kept}


def _parts(info: MotionInfo, form: Format) -> dict[str, dict[str, torch.Size]]:
    """Return each of our parameters with what they call it, or its parts, and the shapes of these."""
    modules = module_names(info)
    with torch.device("meta"):
        inflation = Inflation(info.config, info.structure)
    parts = {}
    for ours, tensor in inflation.state_dict().items():
        site, parameter = ours.split(".attention.")
        names = [f"{modules[site]}.{name}" for name in form.names(parameter)]
        parts[ours] = {name: rows.shape for name, rows in zip(names, tensor.chunk(len(names)))}
    return parts


def _check(shapes: Shapes, parts: Mapping[str, Mapping[str, torch.Size]]) -> None:
    expected = {name: shape for theirs in parts.values() for name, shape in theirs.items()}
    if missing := sorted(expected.keys() - shapes.keys()):
        raise ValueError(f"it lacks {len(missing)} of its {len(expected)} tensors, first {missing[0]}")
    if extra := sorted(shapes.keys() - expected.keys()):
        raise ValueError(f"it holds {extra[0]}, which no motion module of SD1.5 has")
    for name, shape in expected.items():
        if tuple(shapes[name]) != tuple(shape):
            raise ValueError(f"it holds {name} with shape {tuple(shapes[name])}; it should be {tuple(shape)}")


def _length(tables: Tensors) -> int | None:
    """Return the length of the tables of positions of a file, after a check that they hold what we compute."""
    for name, table in tables.items():
        if table.ndim != 3 or not _same(table, frame_positions(*table.shape[1:], table.float())[None]):
            raise ValueError(
                f"its positions {name} are not the sines and cosines that are computed here in their place"
            )
    lengths = {table.shape[1] for table in tables.values()}
    if len(lengths) > 1:
        raise ValueError(f"its positions are for {sorted(lengths)} frames; they should all have one length")
    return lengths.pop() if lengths else None


def _same(table: Tensor, wanted: Tensor) -> bool:
    tolerance = max(1e-3, 2 * torch.finfo(table.dtype).eps)
    return table.shape == wanted.shape and torch.allclose(table.float(), wanted, rtol=0, atol=tolerance)


def check_exportable(info: MotionInfo, name: str) -> None:
    """Raise ValueError where an inflation holds more than a format has, which is called `name`."""
    kinds = info.config.temporal.kinds if info.config.temporal else set()
    others = [*(part for part in info.config.to_json() if part != "temporal"), *sorted(kinds - {"attention"})]
    if others or not kinds:
        raise ValueError(f"it holds {', '.join(others) or 'no temporal blocks'}; {name} has temporal blocks only")
    if not info.config.temporal.positional:
        raise ValueError(f"its temporal blocks have no positions; those of {name} always have them")
    levels = info.structure.levels
    if info.structure != sd15_like([level.width for level in levels], [len(level.down) for level in levels]):
        raise ValueError(f"it is for a U-Net with other layers than SD1.5's; {name} is known for SD1.5 only")
