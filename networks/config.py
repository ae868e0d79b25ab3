"""The config of an inflation, its parts and how they are built: a motion file's description of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import get_args

from .asked import Absent
from .condition import Filling, MaskKind
from .frame_attention import NormScope
from .guidance import Order
from .kinds import BLOCKS
from .recurrent import RecurrenceMode
from .sites import LARGEST_COUNT, Structure

MOST_LAYERS = 16

MOTION_NORMS = ("l1_mean_x_7168", "l2sq_mean_x_7168")


@dataclass(frozen=True)
class Temporal:
    """Blocks over time between the layers of the U-Net.

    `levels` are the kinds at each of its levels, from the finest to the coarsest; a single entry is for all of them.
    "attention": AnimateDiff's, "factorised" and "stacked": Lumiere's of convolutions and of attention, all three after
    every unit; "convolution": HiGen's TConv, after every ResBlock; "transformer": HiGen's TTrans, after the first
    convolution and every spatial transformer. `middle`: in the middle block too.

    `heads` are those of "attention"; "transformer" and "stacked" have heads 64 wide. `positional` and `norm_scope` are
    of "attention", the latter of "convolution" and "transformer" too. `layers` are those of a "stacked" block, `narrow`
    halves the inside of a "factorised" one.
    """

    heads: int = 8
    positional: bool = True
    norm_scope: NormScope = "frame"
    middle: bool = False
    levels: tuple[tuple[str, ...], ...] = (("attention",),)
    layers: int = 2
    narrow: bool = False

    def __post_init__(self):
        given = isinstance(self.levels, tuple) and self.levels
        if not given or not all(isinstance(kinds, tuple) for kinds in self.levels):
            raise ValueError(f"levels {self.levels!r}; allowed are the kinds of each level, finest first")
        for kinds in self.levels:
            for kind in kinds:
                _check_choice("kind", kind, tuple(BLOCKS))
            if len(set(kinds)) < len(kinds):
                raise ValueError(f"a kind twice at one level: {', '.join(kinds)}")
        _check_whole("heads", self.heads)
        _check_whole("layers", self.layers, MOST_LAYERS)
        _check_choice("norm_scope", self.norm_scope, get_args(NormScope))
        for name in ("positional", "middle", "narrow"):
            _check_choice(name, getattr(self, name), (True, False))

    @property
    def kinds(self) -> set[str]:
        return {kind for kinds in self.levels for kind in kinds}

    def at_level(self, level: int) -> tuple[str, ...]:
        return self.levels[0 if len(self.levels) == 1 else level]

    def check(self, structure: Structure) -> None:
        """Raise ValueError where these are not the levels of a U-Net, or their norms do not fit its channels."""
        if len(self.levels) not in (1, len(structure.levels)):
            raise ValueError(f"kinds for {len(self.levels)} levels; this U-Net has {len(structure.levels)}")
        for number, level in enumerate(structure.levels):
            for kind in self.at_level(number):
                block = BLOCKS[kind]
                name, unit = block.name_with(self), block.channel_multiple(self)
                if level.width % unit:
                    raise ValueError(
                        f"{name} blocks need a multiple of {unit} channels; this U-Net has a level of {level.width}"
                    )


@dataclass(frozen=True)
class Resampling:
    """Temporal down- and upsampling: `levels` are those after which the number of frames is halved on the way down.

    It is doubled again on the way up into the same level. Level 0 is the finest.
    """

    levels: tuple[int, ...]

    def __post_init__(self):
        if not isinstance(self.levels, tuple) or any(type(level) is not int for level in self.levels):
            raise ValueError(f"levels {self.levels!r}; allowed are whole numbers from 0")
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels {list(self.levels)}; give at least one, each once, in rising order")

    @property
    def factor(self) -> int:
        """Return N, how many frames become one at the coarsest level."""
        return 2 ** len(self.levels)

    def check(self, structure: Structure) -> None:
        """Raise ValueError where a U-Net has no resize after one of these levels."""
        last = len(structure.levels) - 2
        if self.levels[0] < 0 or self.levels[-1] > last:
            where = f"resizes after levels 0 to {last}" if last >= 0 else "one level, and no resize"
            raise ValueError(f"levels {list(self.levels)}; this U-Net has {where}")


@dataclass(frozen=True)
class Mapping:
    """A network over the frames of the noisy sample, before the U-Net. `kernel`: of its convolutions, over pixels."""

    kernel: int = 1

    def __post_init__(self):
        _check_choice("kernel", self.kernel, (1, 3))


@dataclass(frozen=True)
class Tokens:
    """Text tokens of each frame's own, beside those of the prompt.

    `count` of them for each of `frames` frames; another number of frames gets them interpolated. Every cross-attention
    learns how much they count: `neutral` starts with a tenth of a prompt's token, else with all of it, as printed.
    """

    frames: int
    count: int = 3
    neutral: bool = True

    def __post_init__(self):
        _check_whole("frames", self.frames, 1024)
        _check_whole("count", self.count, 64)
        _check_choice("neutral", self.neutral, (True, False))


@dataclass(frozen=True)
class CrossFrames:
    """Attention over frames as the last sub-layer of every transformer block."""

    heads: int = 8

    def __post_init__(self):
        _check_whole("heads", self.heads)


@dataclass(frozen=True)
class Recurrence:
    """Recurrent attention in every self-attention."""

    mode: RecurrenceMode = "gated_scan"

    def __post_init__(self):
        _check_choice("mode", self.mode, get_args(RecurrenceMode))


@dataclass(frozen=True)
class Queries:
    """Trained queries of every self- and cross-attention: a LoRA of this rank, or full matrices where it is None."""

    rank: int | None = 16

    def __post_init__(self):
        if self.rank is not None:
            _check_whole("rank", self.rank)


@dataclass(frozen=True)
class TemporalLora:
    """LoRAs of this rank on the queries, keys, values and outputs of all attentions over frames of another inflation.

    `levels`, `middle`, `layers`: where that has them in temporal blocks, as in `Temporal`; no levels: nowhere.
    `frame_attention`: it has them in its transformer blocks.
    """

    rank: int = 16
    levels: tuple[tuple[str, ...], ...] = (("attention",),)
    middle: bool = False
    layers: int = 2
    frame_attention: bool = False

    def __post_init__(self):
        _check_whole("rank", self.rank)
        _check_choice("frame_attention", self.frame_attention, (True, False))
        if not (self.temporal and self.temporal.kinds) and not self.frame_attention:
            raise ValueError("no attention that it changes")

    @property
    def temporal(self) -> Temporal | None:
        """Return the blocks that have the attentions, as far as these tell where they are."""
        return Temporal(levels=self.levels, middle=self.middle, layers=self.layers) if self.levels else None

    @classmethod
    def on(cls, config: InflationConfig, rank: int) -> TemporalLora | None:
        """Return LoRAs on all attentions over frames of an inflation, None where it has none."""
        temporal, in_blocks = config.temporal, config.frame_attention is not None
        kinds = [kind for kind in temporal.kinds if BLOCKS[kind].attention_count(temporal)] if temporal else []
        if not temporal or not kinds:
            return cls(rank, levels=(), frame_attention=True) if in_blocks else None
        levels = tuple(tuple(kind for kind in level if kind in kinds) for level in temporal.levels)
        return cls(rank, levels, temporal.middle, temporal.layers, in_blocks)

    def check(self, structure: Structure) -> None:
        """Raise ValueError where a U-Net has not the levels that it speaks of."""
        if self.temporal:
            self.temporal.check(structure)


@dataclass(frozen=True)
class Prior:
    """A second stem beside the U-Net's first convolution, for the latents of a still.

    `absent`: what it does without one, or for a clip of one frame, see `asked.Absent`.
    """

    absent: Absent = "nothing"

    def __post_init__(self):
        _check_choice("absent", self.absent, get_args(Absent))


@dataclass(frozen=True)
class Condition:
    """A stem beside the U-Net's first convolution for known pixels: C (4 channels) and M (1).

    `mask`, `blank`: what its channels were trained to see, see `condition.MaskKind` and `condition.Filling`.
    """

    mask: MaskKind = "known"
    blank: Filling = "zero"

    def __post_init__(self):
        _check_choice("mask", self.mask, get_args(MaskKind))
        _check_choice("blank", self.blank, get_args(Filling))


@dataclass(frozen=True)
class Motion:
    """An embedding of how far each frame is from the next, added to the time embedding.

    `norm`: how it is measured on latents, see `samplers.factors.motion_factors`.
    """

    norm: str = "l1_mean_x_7168"
    order: Order = "mlp_then_interp"
    absent: Absent = "nothing"

    def __post_init__(self):
        _check_choice("norm", self.norm, MOTION_NORMS)
        _check_choice("order", self.order, get_args(Order))
        _check_choice("absent", self.absent, get_args(Absent))


@dataclass(frozen=True)
class Appearance:
    """An embedding of how like each other the frames of a clip are, added to the time embedding.

    `frames`: numbers in a row of similarities that it was made for. `features`: of what they are the similarities;
    a name for people, but "latent" is what every VAE gives.
    """

    frames: int
    features: str = "latent"
    absent: Absent = "nothing"

    def __post_init__(self):
        _check_whole("frames", self.frames, 1024)
        if not isinstance(self.features, str) or not 0 < len(self.features) <= 256:
            raise ValueError(f"features {self.features!r}; allowed is the name of a model, or 'latent'")
        _check_choice("absent", self.absent, get_args(Absent))


@dataclass(frozen=True)
class Resampler:
    """Learnt tokens that read the prompt and take its place in every cross-attention."""

    tokens: int = 16
    width: int = 1280
    layers: int = 2
    heads: int = 8

    def __post_init__(self):
        _check_whole("tokens", self.tokens, 1024)
        _check_whole("width", self.width)
        _check_whole("layers", self.layers, MOST_LAYERS)
        _check_whole("heads", self.heads)
        if self.width % self.heads:
            raise ValueError(f"width {self.width}; it must be a multiple of its {self.heads} heads")


def _check_whole(name: str, value: object, most: int = LARGEST_COUNT) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} {value!r}; allowed are whole numbers from 1 to {most}")


def _check_choice(name: str, value: object, allowed: tuple) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):  # 1.0 and True equal 1
        raise ValueError(f"{name} {value!r}; allowed are {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class InflationConfig:
    """The parts of an inflation; each is optional and independent of the others."""

    temporal: Temporal | None = None
    frame_attention: CrossFrames | None = None
    recurrence: Recurrence | None = None
    queries: Queries | None = None
    resampling: Resampling | None = None
    mapping: Mapping | None = None
    tokens: Tokens | None = None
    prior: Prior | None = None
    motion: Motion | None = None
    appearance: Appearance | None = None
    resampler: Resampler | None = None
    condition: Condition | None = None
    temporal_lora: TemporalLora | None = None

    def frames_at(self, level: int, frames: int) -> int:
        """Return how many of a clip's frames there are at a level of the U-Net."""
        halvings = sum(halved < level for halved in self.resampling.levels) if self.resampling else 0
        return -(-frames // 2**halvings)

    def check(self, structure: Structure) -> None:
        """Raise ValueError where a U-Net has not the levels that a part speaks of, or not the channels it needs."""
        for part in (self.temporal, self.resampling, self.temporal_lora):
            if part:
                part.check(structure)

    def to_json(self) -> dict:
        return {part: options for part, options in asdict(self).items() if options is not None}

    @classmethod
    def from_json(cls, data: dict) -> InflationConfig:
        """Invert `to_json`.

        Raises:
            ValueError: a part or an option that this version does not know, or a value that is not allowed.
        """
        if not isinstance(data, dict):
            raise ValueError(f"its parts are {data!r}; they must be an object")
        if unknown := sorted(set(data) - set(PARTS)):
            raise ValueError(f"it has a part {unknown[0]!r}; this version knows {', '.join(PARTS)}")
        return cls(**{part: _part_from_json(part, options) for part, options in data.items()})


PARTS = {
    "temporal": Temporal,
    "frame_attention": CrossFrames,
    "recurrence": Recurrence,
    "queries": Queries,
    "resampling": Resampling,
    "mapping": Mapping,
    "tokens": Tokens,
    "prior": Prior,
    "motion": Motion,
    "appearance": Appearance,
    "resampler": Resampler,
    "condition": Condition,
    "temporal_lora": TemporalLora,
}


def _part_from_json(part: str, options: dict):
    known = sorted(field.name for field in fields(PARTS[part]))
    needed = [field.name for field in fields(PARTS[part]) if field.default is MISSING]
    if not isinstance(options, dict):
        raise ValueError(f"the options of its part {part!r} are {options!r}; they must be an object")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"its part {part!r} has an option {unknown[0]!r}; this version knows {', '.join(known)}")
    if missing := [name for name in needed if name not in options]:
        raise ValueError(f"its part {part!r} lacks {missing[0]!r}")
    try:
        return PARTS[part](**{name: _as_tuples(value) for name, value in options.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"its part {part!r} has {error}") from None


def _as_tuples(value: object) -> object:
    """Turn lists, the only ones that JSON knows, into tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
