"""The words of captions in files of any encoding: beside a clip, or in the rows of a table."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from ...networks.json_text import whole_number
from .source import is_text

LONGEST_CAPTION = 2**20  # bytes; a novel has as many, and CLIP reads 75 tokens
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # at the beginning of what Windows calls Unicode


def clip_key(name: str) -> str:
    """Return the form in which names from files and from the disk are compared: macOS decomposes, Windows turns
    slashes."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return name.removeprefix("./")


def encoding_of(beginning: bytes) -> str:
    return MARKS.get(beginning[:2], "utf-8-sig")


def read_caption(path: Path, name: str) -> str:
    """Return the caption in a file of its own, on one line.

    Raises:
        ValueError: it is too long, no text, or cannot be read; the message names the file by `name`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_CAPTION + 1)
    except OSError as error:
        raise ValueError(f"its caption {name} cannot be read ({error.strerror})") from error
    return " ".join(decoded(data, name).split())


def decoded(data: bytes, name: str) -> str:
    if len(data) > LONGEST_CAPTION:
        raise ValueError(f"{name} has more than {LONGEST_CAPTION} bytes, which a caption has not")
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text; save it again as UTF-8") from error


def object_in(text: str, origin: str) -> dict:
    """Return the JSON object that a text is.

    Raises:
        ValueError: it is none, or says one thing twice; the message begins with `origin`.
    """
    try:
        row = json.loads(text, object_pairs_hook=lambda pairs: once(pairs, origin), parse_int=whole_number)
    except RecursionError as error:
        raise ValueError(f"{origin} is not JSON that can be read: it is nested too deeply (recursion)") from error
    except ValueError as error:  # of a number with thousands of digits too
        raise ValueError(str(error) if str(error).startswith(origin) else f"{origin} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{origin} is not an object such as {{'file_name': ..., 'text': ...}}")
    return row


def once(pairs: list[tuple[str, object]], origin: str) -> dict:
    """Make an object of its pairs; of two with one name json would take the last and say nothing."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{origin} says {twice!r} twice")
    return row


def text_in(row: dict) -> object:
    """Return what stands for the caption in a row or in a sample's JSON."""
    return row.get("text", row.get("caption"))


def caption_of(row: dict, origin: str) -> tuple[str, str]:
    """Return a row's clip and caption, on one line each.

    Raises:
        ValueError: one of them is not there, or no text (JSON can spell halves of letters); begins with `origin`.
    """
    name, text = row.get("file_name"), text_in(row)
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{origin} needs file_name and text (or caption); it has {', '.join(map(repr, row))[:200]}")
    if not is_text(name + text):
        raise ValueError(f"{origin} is no text: there is half of a letter in it (surrogates)")
    return clip_key(name), " ".join(text.split())
