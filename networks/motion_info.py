"""What a motion file says of itself: a description of its tensors and of how they were trained."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .config import InflationConfig
from .shown import shown
from .sites import Structure

ADDED_LATER = {"positions", "zero_snr", "factors"}
"""Of the description: files of before there was such a thing have the default."""

MOST_FRAMES, LARGEST_SIDE, MOST_FPS = 1024, 16384, 1000.0
LIMITS = {"frames": MOST_FRAMES, "positions": MOST_FRAMES, "width": LARGEST_SIDE, "height": LARGEST_SIDE}
"""Far beyond every clip there is; tables are computed and memory is asked for by these numbers."""


@dataclass(frozen=True)
class Over:
    """The motion that a file was learnt on top of: its file's name, `tensor_file.hash_of`, and its base family."""

    name: str
    sha256: str
    family: str

    def __post_init__(self):
        if wrong := [value for value in (self.name, self.sha256, self.family) if not isinstance(value, str)]:
            raise ValueError(f"it was learnt on top of a file that it describes by {told(wrong[0])}, which is no text")


@dataclass(frozen=True)
class MotionInfo:
    """The description in a motion file.

    `schedule` and `prediction` are those it was trained on, in diffusers' names. `frames`, `fps`, `width` and `height`
    (pixels) are those of its training clips. `captions` are the distinct training captions, `options` the resolved
    options of the command that made it, `versions` of the libraries that did. `positions` is for how many frames other
    programs' form of the file stores positions; None: it stores none. `zero_snr`: the schedule is rescaled to end in
    noise alone (Lin et al. 2024, arXiv 2305.08891). `factors`: of the training clips, "motion" and "appearance", each
    the 5th, 50th and 95th percentile. `over`: the motion that it was learnt on top of, without which it is not whole;
    None: the image model alone.
    """

    config: InflationConfig
    structure: Structure
    schedule: str = "scaled_linear"
    prediction: str = "epsilon"
    frames: int = 16
    fps: float = 8.0
    width: int = 512
    height: int = 512
    captions: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    positions: int | None = 32
    zero_snr: bool = False
    factors: dict = field(default_factory=dict)
    over: Over | None = None

    def __post_init__(self):
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if (type(value) is not int or not 1 <= value <= most) and not (name == "positions" and value is None):
                raise ValueError(f"its {name} is {told(value)}; it must be a whole number from 1 to {most}")
        if type(self.fps) not in (int, float) or not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"its fps is {told(self.fps)}; it must be a number above 0, up to {MOST_FPS:g}")
        for name, kind in KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"its {name} is {told(getattr(self, name))}, which is no {kind.__name__}")
        if wrong := [caption for caption in self.captions if not isinstance(caption, str)]:
            raise ValueError(f"it has the caption {told(wrong[0])}, which is no text")
        for name, values in self.factors.items():
            if not is_range(values):
                raise ValueError(f"its factors of {name} are {told(values)}; they must be three numbers")

    @property
    def family(self) -> str:
        return self.structure.family


def is_range(values: object) -> bool:
    """Tell whether these are three numbers of any size that a factor has: its percentiles."""
    numbers = list(values) if isinstance(values, list | tuple) else []
    return len(numbers) == 3 and all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers)  # NaN is not


KINDS = {
    "schedule": str,
    "prediction": str,
    "captions": tuple,
    "options": dict,
    "versions": dict,
    "zero_snr": bool,
    "factors": dict,
}


def told(value: object) -> str:
    """Return a value for an error, however long it is in the file."""
    return shown(repr(value), 100)


def info_from(own: dict) -> MotionInfo:
    """Return the description that is in a file, in the terms of the present format.

    Raises:
        ValueError: a value is missing or is none that can be used.
    """
    same = {f.name for f in fields(MotionInfo)} - {"config", "structure", "captions", "over"}
    same -= ADDED_LATER - own.keys()
    try:
        if not isinstance(own["captions"], list):
            raise ValueError(f"its captions are {told(own['captions'])}, which is no list")
        return MotionInfo(
            config=InflationConfig.from_json(own["config"]),
            structure=Structure.from_json(own["structure"]),
            captions=tuple(own["captions"]),
            over=Over(**over) if (over := own.get("over")) is not None else None,
            **{name: own[name] for name in same},
        )
    except KeyError as error:
        raise ValueError(f"its description lacks {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its description has a value of the wrong kind ({error})") from None
