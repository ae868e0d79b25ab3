"""JSON from files of unknown origin."""

from __future__ import annotations

import json
from pathlib import Path

LARGEST = 2**20
"""Bytes of a configuration; ours and all that people have are a few thousand."""

DEEPEST = 64
"""Lists and objects in one another; what we write has a handful, and ever more would overflow the stack later."""

MOST_DIGITS = 1000
"""Of a whole number; Python itself refuses some thousands, with advice for its programmer."""


def parse_json(text: str | bytes, deepest: int = DEEPEST):
    """Return the value of a JSON text, in UTF-8 with or without a byte order mark where it is bytes.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, parse_int=whole_number)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in one another") from None
    if _depth_over(value, deepest):
        raise ValueError(f"its lists and objects lie more than {deepest} deep in one another")
    return value


def whole_number(digits: str) -> int:
    """Return the number. Raise ValueError where it has more digits than any that means something."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def read_config(path: Path) -> dict:
    """Return the JSON object in a file.

    Raises:
        ValueError: with the file's name in its folder, where it is missing, too large or holds something else.
    """
    name = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ValueError(f"{name} is not there")
    with open(path, "rb") as file:
        text = file.read(LARGEST + 1)
    try:
        value = parse_json(text) if len(text) <= LARGEST else None
    except ValueError as error:
        raise ValueError(f"{name} cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no JSON object of at most {LARGEST} bytes")
    return value


def _depth_over(value, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value) -> list:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, dict | list)]
