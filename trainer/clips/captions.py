"""Captions of clips, from a text file beside each clip, from metadata.jsonl, or from a .csv file."""

import csv
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Caption:
    """A clip's entry in a caption file; `clip` is its path in the folder, in a .txt file's case without suffix."""

    clip: str
    text: str
    origin: str


def clip_key(name: str) -> str:
    """Return the form in which names from files and from the disk are compared: macOS decomposes, Windows turns
    slashes."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return name.removeprefix("./")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it again as UTF-8") from error


def read_caption_text(path: Path, name: str) -> Caption:
    """Return the caption in a .txt file, on one line."""
    return Caption(clip_key(name).removesuffix(path.suffix), " ".join(read_text(path).split()), name)


def read_metadata(path: Path) -> list[Caption]:
    """Return the captions in a metadata.jsonl file: one object a line, with file_name and text (or caption)."""
    captions = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            captions.append(caption_of_row(parse_line(line, path, number), f"{path.name}, line {number}"))
    return captions


def parse_line(line: str, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path.name}, line {number} is not an object such as {{'file_name': ..., 'text': ...}}")
    return row


def read_table(path: Path) -> list[Caption]:
    """Return the captions in a .csv file with the columns file_name and text (or caption)."""
    rows = csv.DictReader(read_text(path).splitlines(keepends=True))
    return [caption_of_row(row, f"{path.name}, line {rows.line_num}") for row in rows]


def caption_of_row(row: dict, origin: str) -> Caption:
    name, text = row.get("file_name"), row.get("text", row.get("caption"))
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError(f"{origin} needs file_name and text (or caption); it has {', '.join(map(str, row))}")
    return Caption(clip_key(name), " ".join(text.split()), origin)
