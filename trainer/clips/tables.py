"""The rows of tables of clips: .csv and .jsonl with file_name and text (or caption)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TextIO

from ...networks.shown import shown
from .captions import caption_of, encoding_of, object_in
from .source import Source

LONGEST_LINE = 2**20  # letters
LONGEST_HEAD = 2**16  # bytes that are looked at to tell whether a .csv file is a table of clips
NAME, TEXTS = "file_name", ("text", "caption")


def is_table(path: Path) -> bool:
    """Tell whether a file in a folder is a table of the set: metadata.jsonl, or a .csv with a column file_name."""
    if path.name.lower() == "metadata.jsonl":
        return path.is_file()
    return path.suffix.lower() == ".csv" and path.is_file() and NAME in head_of(path)


def head_of(path: Path) -> list[str]:
    """Return the names of a .csv file's columns, as far as its first line can be read."""
    with path.open("rb") as file:
        beginning = file.read(LONGEST_HEAD)
    line = beginning.decode(encoding_of(beginning), "replace").partition("\n")[0]
    try:
        return columns(next(csv.reader([line.rstrip("\r")]), []))
    except csv.Error:
        return []


def columns(head: list[str]) -> list[str]:
    return [name.strip().lower() for name in head]


def samples_of(path: Path, root: Path, caption: str | None = None) -> Iterator[Source]:
    """Return the sample of each row, at least one; what is wrong with a row is its problem.

    Args:
        root: where names of samples start; the table's own names start at the folder it lies in.
        caption: one for all; None: the rows'.

    Raises:
        ValueError: the file cannot be read any further; the message says where.
    """
    label, empty = path.relative_to(root).as_posix(), True
    for number, row in rows_of(path, label):
        empty = False
        yield sample_of(path, root, row, f"{label}, line {number}", caption)
    if empty:
        yield Source(path, label, problem="no row in it", missing=True)


def rows_of(path: Path, label: str) -> Iterator[tuple[int, dict | str]]:
    """Return the number of each line with its row, or with what is written there: JSON, or why it is no row."""
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(2))
        with path.open(encoding=encoding, newline="\n") as file:  # a line ends at \n and nowhere else
            yield from csv_rows(file, label) if path.suffix.lower() == ".csv" else json_rows(file, label)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it again as UTF-8") from error


def lines_of(file: TextIO, label: str) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{label}, line {number} has more than {LONGEST_LINE} letters; no caption is so long")
        yield number, line


def json_rows(file: TextIO, label: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in lines_of(file, label) if line.strip())


def csv_rows(file: TextIO, label: str) -> Iterator[tuple[int, dict | str]]:
    reader = csv.reader((line for _, line in lines_of(file, label)), strict=True)
    try:
        head = columns(next(reader, []))
        check_head(head, label)
        for fields in reader:
            if fields:
                yield reader.line_num, row_of(head, fields)
    except csv.Error as error:
        hint = "; a field with commas or quotes in it stands in quotes, which are doubled in it"
        raise ValueError(f"{label}, line {reader.line_num} cannot be read: {error}{hint}") from error


def check_head(head: list[str], label: str) -> None:
    if NAME not in head or not set(TEXTS) & set(head) or len(set(head)) < len(head):
        raise ValueError(
            f"{label}, line 1 needs file_name and text (or caption), each once, with commas between them; it has"
            f" {shown(', '.join(head), 200) or 'nothing'}"
        )


def row_of(head: list[str], fields: list[str]) -> dict | str:
    """Return a row by its columns; commas of a last column that holds the caption are the caption's own."""
    extra = len(fields) - len(head)
    used = TEXTS[0] if TEXTS[0] in head else TEXTS[1]
    if extra > 0 and head[-1] == used:
        fields = [*fields[: len(head) - 1], ",".join(fields[len(head) - 1 :])]
    elif extra > 0:
        return f" has {len(fields)} fields, and the head {len(head)}: put a caption with commas in it in quotes"
    return dict(zip(head, fields))


def sample_of(path: Path, root: Path, row: dict | str, origin: str, caption: str | None) -> Source:
    folder, prefix = path.parent, path.parent.relative_to(root).as_posix()
    try:
        if isinstance(row, str) and path.suffix.lower() == ".csv":
            raise ValueError(origin + row)
        row = object_in(row, origin) if isinstance(row, str) else row
        name, text = caption_of(row if caption is None else row | {"text": caption}, origin)
    except ValueError as error:
        return Source(path, origin, problem=str(error).removeprefix(f"{origin} "), missing=True)
    below = name if prefix == "." else f"{prefix}/{name}"
    if leads_outside(name):
        return Source(path, below, problem=f"{origin} names no file below {folder.name}", missing=True)
    problem = None if text or caption is not None else f"its caption is empty ({origin})"
    return Source(folder / name, below, text, problem)


def leads_outside(name: str) -> bool:
    """Tell whether a name is anything but a path downwards, on any system: absolute, with a drive, with "..", or
    empty."""
    path = PureWindowsPath(name)  # which knows both slashes
    return not path.parts or bool(path.anchor) or ".." in path.parts
