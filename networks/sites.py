"""The places of a Stable Diffusion U-Net where something can be attached, derived from its own structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Literal

FAMILY_OF_CONTEXT = {768: "sd15", 1024: "sd21", 2048: "sdxl"}

# far beyond every model there is; a file that claims more is refused before anything is built
MOST_LEVELS, MOST_BLOCKS, LARGEST_COUNT = 8, 256, 16384

Shapes = Mapping[str, Sequence[int]]
"""Name and shape of every tensor of a U-Net."""


@dataclass(frozen=True)
class Level:
    """One resolution of a U-Net.

    `down` and `up` give the transformer depth (0: none) after each ResBlock on the way down and up.
    """

    width: int
    down: tuple[int, ...]
    up: tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """One layer of the frozen U-Net.

    `name` is its path in the ldm scheme and the name that motion files use; `diffusers` is the same layer in
    `UNet2DConditionModel`. Inside a transformer both schemes agree. `ends_unit`: the last layer of a unit, that is the
    transformer where there is one, else the ResBlock; a resize is no part of a unit.
    """

    name: str
    diffusers: str
    kind: Literal["conv_in", "res", "transformer", "down", "up"]
    level: int
    width: int
    depth: int = 0
    ends_unit: bool = False

    @property
    def stage(self) -> str:
        """See `stage_of`."""
        return stage_of(self.name)

    @property
    def blocks(self) -> list[str]:
        """Return the names of its transformer blocks, `<name>.transformer_blocks.<k>`."""
        return [f"{self.name}.transformer_blocks.{k}" for k in range(self.depth)]


def stage_of(site: str) -> str:
    """Return where a site is: "input" on the way down, "middle", or "output" on the way up."""
    return site.partition("_")[0]


@dataclass(frozen=True)
class Structure:
    """The layers of a Stable Diffusion U-Net, as far as one differs from another.

    `levels` run from the finest to the coarsest. `middle` is the transformer depth of the middle block, 0 for a lone
    ResBlock, None where there is no middle block. `context` is the width of the text embedding.
    """

    levels: tuple[Level, ...]
    middle: int | None
    context: int

    def __post_init__(self):
        depths = [depth for level in self.levels for depth in (*level.down, *level.up)] + [
            0 if self.middle is None else self.middle
        ]
        if not all(level.down and level.up for level in self.levels) or not 1 <= len(self.levels) <= MOST_LEVELS:
            raise ValueError(f"a U-Net has 1 to {MOST_LEVELS} levels, each with blocks down and up")
        if any(_is_no_count(d, 0) for d in depths):
            raise ValueError("the depths of a U-Net's transformers are whole numbers from 0")
        if max(len(depths), sum(depths)) > MOST_BLOCKS:
            raise ValueError(f"a U-Net has at most {MOST_BLOCKS} blocks")
        if any(_is_no_count(width, 1) for width in (self.context, *(level.width for level in self.levels))):
            raise ValueError("the widths of a U-Net are whole numbers from 1")

    @property
    def family(self) -> str:
        return FAMILY_OF_CONTEXT.get(self.context, f"unknown ({self.context} wide text)")

    def sites(self) -> list[Site]:
        """Return every site, in the order of execution."""
        first = Site("input_blocks.0.0", "conv_in", "conv_in", 0, self.levels[0].width)
        return [first, *self._down(), *self._middle(), *self._up()]

    def _down(self) -> Iterator[Site]:
        index = count(1)
        for number, level in enumerate(self.levels):
            for j, depth in enumerate(level.down):
                yield from _unit(f"input_blocks.{next(index)}", f"down_blocks.{number}", j, number, level.width, depth)
            if number < len(self.levels) - 1:
                name, other = f"input_blocks.{next(index)}.0", f"down_blocks.{number}.downsamplers.0"
                yield Site(name, other, "down", number, level.width)

    def _middle(self) -> Iterator[Site]:
        if self.middle is None:
            return
        number, width = len(self.levels) - 1, self.levels[-1].width
        yield from _unit("middle_block", "mid_block", 0, number, width, self.middle)
        if self.middle:
            yield Site("middle_block.2", "mid_block.resnets.1", "res", number, width)

    def _up(self) -> Iterator[Site]:
        index = count()
        for number, level in reversed(list(enumerate(self.levels))):
            block = f"up_blocks.{len(self.levels) - 1 - number}"
            for j, depth in enumerate(level.up):
                name = f"output_blocks.{next(index)}"
                yield from _unit(name, block, j, number, level.width, depth)
            if number > 0:
                position = 2 if level.up[-1] else 1
                yield Site(f"{name}.{position}", f"{block}.upsamplers.0", "up", number, level.width)

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Structure:
        """Invert `to_json`. Raise KeyError or TypeError where `data` is none."""
        levels = tuple(Level(level["width"], tuple(level["down"]), tuple(level["up"])) for level in data["levels"])
        return cls(levels, data["middle"], data["context"])


def _is_no_count(value: object, least: int) -> bool:
    return type(value) is not int or not least <= value <= LARGEST_COUNT


def _unit(name: str, block: str, j: int, level: int, width: int, depth: int) -> Iterator[Site]:
    yield Site(f"{name}.0", f"{block}.resnets.{j}", "res", level, width, ends_unit=depth == 0)
    if depth:
        yield Site(f"{name}.1", f"{block}.attentions.{j}", "transformer", level, width, depth, ends_unit=True)


def structure_from_ldm(shapes: Shapes) -> Structure:
    """Read the structure off the tensors of a U-Net in ldm names (ComfyUI, original checkpoints).

    Args:
        shapes: without the `model.diffusion_model.` prefix.

    Raises:
        ValueError: these are not the tensors of a Stable Diffusion U-Net.
    """
    widths, down, up = [0], [[]], [[]]
    for i in count(1):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            widths, down = [*widths, 0], [*down, []]
        elif (res := f"input_blocks.{i}.0.out_layers.3.weight") in shapes:
            widths[-1] = _axis(shapes, res, 0)
            down[-1].append(_depth(shapes, f"input_blocks.{i}.1"))
        else:
            break
    for i in count():
        if f"output_blocks.{i}.0.out_layers.3.weight" not in shapes:
            break
        up[-1].append(_depth(shapes, f"output_blocks.{i}.1"))
        # a resize follows; it is layer 3 where another pack has left a layer of its own in the block
        if any(f"output_blocks.{i}.{k}.conv.weight" in shapes for k in (1, 2, 3)):
            up.append([])
    middle = _depth(shapes, "middle_block.1") if "middle_block.0.out_layers.3.weight" in shapes else None
    return _structure(shapes, widths, down, up[::-1], middle)


def structure_from_diffusers(shapes: Shapes) -> Structure:
    """Read the structure off the tensors of a `UNet2DConditionModel`. Errors as in `structure_from_ldm`."""

    def unit_depths(block: str) -> list[int]:
        names = (f"{block}.resnets.{j}.conv2.weight" for j in count())
        return [_depth(shapes, f"{block}.attentions.{j}") for j, name in zip(count(), _while_in(shapes, names))]

    names = (f"down_blocks.{i}.resnets.0.conv2.weight" for i in count())
    widths = [_axis(shapes, name, 0) for name in _while_in(shapes, names)]
    down = [unit_depths(f"down_blocks.{i}") for i in range(len(widths))]
    up = [unit_depths(f"up_blocks.{i}") for i in reversed(range(len(widths)))]
    middle = _depth(shapes, "mid_block.attentions.0") if "mid_block.resnets.0.conv2.weight" in shapes else None
    return _structure(shapes, widths, down, up, middle)


def _while_in(shapes: Shapes, names: Iterator[str]) -> Iterator[str]:
    for name in names:
        if name not in shapes:
            return
        yield name


def _axis(shapes: Shapes, name: str, axis: int) -> int:
    if len(shapes[name]) <= axis:
        raise ValueError(f"its {name} has the shape {tuple(shapes[name])}, which is no layer of a U-Net")
    return shapes[name][axis]


def _depth(shapes: Shapes, transformer: str) -> int:
    return len(list(_while_in(shapes, (f"{transformer}.transformer_blocks.{k}.norm1.weight" for k in count()))))


def _structure(shapes: Shapes, widths: list, down: list, up: list, middle: int | None) -> Structure:
    context = next((_axis(shapes, name, 1) for name in shapes if name.endswith("attn2.to_k.weight")), None)
    if context is None or len(up) != len(down) or not all([widths, *widths, *down, *up]):
        raise ValueError("This is not a Stable Diffusion U-Net (SD1.5, SD2.x, SDXL): its layers are named differently.")
    levels = tuple(Level(width, tuple(d), tuple(u)) for width, d, u in zip(widths, down, up))
    return Structure(levels, middle, context)
