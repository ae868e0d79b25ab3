"""Samples in tar files of WebDataset's form: key.mp4 with key.txt, or with key.json that has "text" or "caption".

Only headers and captions are read. webdataset's own iterators read every byte on the way and keep the videos of all
samples that wait to be shuffled; here a sample is the place of its clip, whose bytes are read when its turn comes.
Members are bytes and nothing else: none is extracted under its own name, followed as a link, or unpickled.
"""

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

from ...networks.shown import shown
from .captions import LONGEST_CAPTION, decoded, object_in, text_in
from .folders import Aside
from .kinds import MAY_MOVE, MOVING, VIDEOS, is_hidden
from .shot import ClipError
from .source import Source, is_text

KINDS = (*VIDEOS, *MOVING, *MAY_MOVE)  # of clips
WORDS = "txt", "caption", "json"  # the first of these counts: a .json may hold much else
CHUNK = 2**20  # bytes copied at once
BROKEN = (tarfile.TarError, ValueError, OverflowError, RecursionError)  # what tarfile raises on damaged headers


@dataclass(frozen=True)
class Member(Source):
    """A clip in the tar file `path`: `size` bytes from `offset` on, of the kind `suffix` (".mp4")."""

    offset: int = 0
    size: int = 0
    suffix: str = ""


def tar_samples(
    path: Path,
    name: str,
    caption: str | None = None,
    kinds: tuple[str, ...] = KINDS,
    aside: Aside | None = None,
) -> Iterator[Source]:
    """Return the samples of a tar file in its order, at least one: what is wrong with a sample or the file is its
    problem.

    Args:
        name: of the tar file, with which those of its samples begin.
        caption: one for all; without it captions come from the tar file.
        kinds: suffixes of what a sample is, clips or pictures; where it has several, the first of these counts.
        aside: is told of files that are no part of any sample.
    """
    count = 0
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            for key, files in groupby(plain_files(tar), lambda file: base_plus_ext(file.name)[0]):
                parts = {str(base_plus_ext(file.name)[1]).lower(): file for file in files}
                if key is None or are_strangers(parts, kinds):  # None: a file without a suffix
                    if aside:
                        aside.add(file.name for file in parts.values())
                else:
                    yield sample_of(path, f"{name}/{shown(key)}", parts, tar.fileobj, caption, kinds)
                    count += 1
    except BROKEN as error:
        problem = f"no tar file, or one that is damaged or cut off after {count} samples ({error})"
        yield Source(path, name, problem=problem, missing=True)
        return
    if not count:
        yield Source(path, name, problem="no sample in it", missing=True)


def plain_files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Return the files in a tar file; links, devices, files with holes, and what systems leave are passed over.

    Raises:
        tarfile.ReadError: it does not end as it should.
    """
    end = 0
    while file := tar.next():
        tar.members.clear()  # it would keep them all
        if tar.offset <= end:
            raise tarfile.ReadError("a size below zero")
        end = tar.offset
        if file.isreg() and not file.issparse() and not any(map(is_hidden, file.name.split("/"))):
            yield file
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes any nonsense for the end
        raise tarfile.ReadError("it has no end")


def are_strangers(parts: Iterable[str], kinds: tuple[str, ...]) -> bool:
    """Tell by their last suffixes whether files are no part of a sample: none of its kinds, and no words of one."""
    return not any(part.rpartition(".")[2] in (*kinds, *WORDS) for part in parts)


def sample_of(
    path: Path,
    name: str,
    parts: dict[str, tarfile.TarInfo],
    tar: BinaryIO,
    caption: str | None,
    kinds: tuple[str, ...],
) -> Source:
    kind = next((kind for kind in kinds if kind in parts), None)
    if kind is None:
        found, what = shown(", .".join(parts)), "clip" if kinds is KINDS else "picture"
        return Source(path, name, problem=f"no {what} in it; after the first dot come .{found}", missing=True)
    problem = None
    if caption is None:
        try:
            caption = caption_in(parts, tar)
        except ValueError as error:
            problem = str(error)
    clip = parts[kind]
    place = {"offset": clip.offset_data, "size": clip.size, "suffix": f".{kind}"}
    return Member(path, f"{name}.{kind}", caption or "", problem, **place)


def caption_in(parts: dict[str, tarfile.TarInfo], tar: BinaryIO) -> str:
    """Return the caption of a sample, on one line.

    Raises:
        ValueError: there is none, or what is there is none.
    """
    kind = next((kind for kind in WORDS if kind in parts), None)
    if kind is None:
        raise ValueError("no caption: put a .txt or .json of the same name right after it, or give --caption")
    if parts[kind].size > LONGEST_CAPTION:
        raise ValueError(f"its .{kind} has {parts[kind].size} bytes, and a caption at most {LONGEST_CAPTION}")
    tar.seek(parts[kind].offset_data)
    text = decoded(tar.read(parts[kind].size), f"its .{kind}")
    text = text_of_json(text) if kind == "json" else text
    if not is_text(text):  # JSON can spell halves of letters
        raise ValueError(f"its .{kind} is not UTF-8 text")
    if not text.strip():
        raise ValueError(f"its caption is empty (.{kind})")
    return " ".join(text.split())


def text_of_json(content: str) -> str:
    row = object_in(content, "its .json")
    text = text_in(row)
    if not isinstance(text, str):
        raise ValueError('its .json has no "text" or "caption"')
    return text


@contextmanager
def unpacked(member: Member) -> Iterator[Path]:
    """Return a file with the bytes of a clip, for as long as the context lasts.

    Raises:
        ClipError: they are not there any more.
    """
    # Windows removes no file that an error left open, and the error is what matters
    with TemporaryDirectory(prefix="stillmotion-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"clip{member.suffix}"
        with member.path.open("rb") as tar, path.open("wb") as file:
            tar.seek(member.offset)
            left = member.size
            while left:
                chunk = tar.read(min(left, CHUNK))
                if not chunk:
                    raise ClipError(f"cut off: {member.path.name} has become shorter")
                left -= file.write(chunk)
        yield path
