"""Strengths that vary over the levels of a U-Net or over the frames of a clip, as users write them."""

from __future__ import annotations

import re

LARGEST = 10.0
KEYFRAME = re.compile(r"""["']?([0-9]{1,6})["']?\s*:\s*(.+)""")
"""Quotes around the frame and brackets around the factor are how prompt schedules are written."""

FRAME = re.compile("-?[0-9]{1,6}")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
EMPTY = {"none", "null"}
"""What a graph without a text becomes where another program has written it."""


def parse_levels(text: str | None) -> tuple[float, ...]:
    """Return the factors of the levels of a U-Net, finest first, of "1, 1, 0.5, 0"; () of an empty text.

    A comma at the end counts for nothing.

    Raises:
        ValueError: something between two commas is no number from 0 to 10.
    """
    return parse_factors(text, "level_strengths", '"1, 1, 0.5, 0" or one number')


def parse_factors(text: str | None, name: str, example: str, most: float = LARGEST) -> tuple[float, ...]:
    """Return the factors between the commas of a text, see `parse_keyframes`; () of an empty one.

    Raises:
        ValueError: something between two commas is no number from 0 to `most`.
    """
    parts = without_nothing(text).removesuffix(",").strip()
    return tuple(_factor(part, name, example, most) for part in parts.split(",") if parts)


def parse_frames(text: str | None, name: str, example: str) -> tuple[int, ...]:
    """Return the numbers of frames, negative ones counting from the end, between the commas of a text.

    Raises:
        ValueError: something between two commas is no whole number, or there is none.
    """
    parts = [part.strip() for part in without_nothing(text).removesuffix(",").split(",")]
    if wrong := [part for part in parts if not FRAME.fullmatch(part)]:
        raise ValueError(f"{name} has {wrong[0]!r}; write frames, for example {example}.")
    return tuple(map(int, parts))


def without_nothing(text: str | None) -> str:
    """Return a text without blanks around it, empty where there is none."""
    text = (text or "").strip()
    return "" if text.lower() in EMPTY else text


def levels_for(factors: tuple[float, ...], levels: int) -> tuple[float, ...]:
    """Return a factor for each of so many levels, where one may stand for all; () of none.

    Raises:
        ValueError: there are others than one for each level.
    """
    if len(factors) not in (0, 1, levels):
        raise ValueError(
            f"level_strengths has {len(factors)} factors; this model has {levels} levels: give one for each, finest"
            " first, or a single one for all."
        )
    return factors * levels if len(factors) == 1 else factors


def parse_keyframes(
    text: str | None, name: str = "keyframes", most: float = LARGEST, example: str = '"0: 1.0, 8: 0.5"'
) -> tuple[tuple[int, float], ...]:
    """Return frames with their factors, in rising order, of "0: 1.0, 8: 0.5, 15: 1.2"; () of an empty text.

    Line breaks may stand in the place of commas, or beside them.

    Args:
        name, most, example: of the input that users write it in: its name, its largest factor and some of its text.

    Raises:
        ValueError: a part is no `frame: factor`, or a frame is there twice.
    """
    keyframes: dict[int, float] = {}
    for part in filter(None, map(str.strip, re.split("[,\n]", without_nothing(text)))):
        found = KEYFRAME.fullmatch(part)
        if not found:
            raise ValueError(f"{name} has {part!r}; write frame: factor, for example {example}.")
        frame = int(found[1])
        if frame in keyframes:
            raise ValueError(f"{name} has frame {frame} twice; give each frame one factor.")
        keyframes[frame] = _factor(found[2].strip("()\"' "), name, example, most)
    return tuple(sorted(keyframes.items()))


def _factor(text: str, name: str, example: str, most: float = LARGEST) -> float:
    value = float(text) if NUMBER.fullmatch(text.strip()) else -1.0
    if not 0 <= value <= most:
        raise ValueError(f"{name} has {text.strip()!r}; write numbers from 0 to {most:g}, for example {example}.")
    return value
