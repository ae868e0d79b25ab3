"""Sets of clips too large for a list: folders, tables and tar files, read one sample after the other.

A sample is a Source: its name, its caption, and where the clip lies. Iterating decodes nothing and keeps nothing, so
that passing over samples is cheap. What cannot be used is a sample with a problem, and has its place like the others.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PureWindowsPath

from webdataset.shardlists import expand_urls

from .cache import content_hash, name_of
from .captions import caption_of_row, clip_key, parse_line
from .decoding import BESIDE, ClipError, natural_key, picture_files
from .find import Source, captioned, clip_name, find_clips, read_captions
from .tars import Member, tar_samples, unpacked

log = logging.getLogger("stillmotion")

PACKED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
IN_FOLDERS = re.compile(rf"(\.tar|{PACKED.pattern[:-1]}|\.csv|^metadata\.jsonl)$", re.IGNORECASE)
STAMP = 2**16  # bytes of a tar file, from its start, that its stamp depends on


@dataclass(frozen=True)
class Shard(ABC):
    """A part of a set. Iterating gives its samples, at least one, always in the same order.

    `folder` is where the names in it start, `prefix` what stands before them to tell several folders apart, `caption`,
    if any, that of all samples.
    """

    path: Path
    folder: Path
    prefix: str = ""
    caption: str | None = None

    @property
    def name(self) -> str:
        return self.named(clip_name(self.path, self.folder))

    def named(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @abstractmethod
    def __iter__(self) -> Iterator[Source]: ...

    @abstractmethod
    def stamp(self) -> str:
        """Tell whether this is the same data as before, as far as that shows without reading all of it."""


def shards_of(videos: Path | str, caption: str | None = None, kinds: Kinds | None = None) -> list[Shard]:
    """Find the tar files, tables and folders that make up a set, in natural order.

    Args:
        videos: a tar file, a table (.csv, .jsonl), a clip, or a folder: of tar files, with tables in it, or of clips.
            Braces name several: shards/{000..123}.tar.
        caption: one for all clips; without it captions come from tar files, tables, or the files beside the clips.
        kinds: how folders and tar files are read; None: as those of clips.

    Raises:
        FileNotFoundError: something does not exist.
        ValueError: a folder holds no clips, or a tar file is compressed.
    """
    kinds = kinds or CLIPS
    paths = [Path(name).absolute() for name in expanded(Path(videos))]  # absolute, so that "." has a name
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder of {kinds.name}, a table, or tar files")
    folders = [path if is_branch(path) else path.parent for path in paths]
    root = Path(os.path.commonpath(folders))
    prefixes = [folder.relative_to(root).as_posix().removeprefix(".") for folder in folders]
    return [part for place in zip(paths, folders, prefixes) for part in parts_of(*place, caption, kinds)]


def expanded(videos: Path) -> list[str]:
    if "{" not in str(videos) or videos.exists():
        return [str(videos)]
    try:
        return expand_urls(videos.as_posix())
    except ValueError as error:
        raise ValueError(
            f"{videos} has a brace without its other half; shards/{{000..123}}.tar names several"
        ) from error


def parts_of(path: Path, folder: Path, prefix: str, caption: str | None, kinds: Kinds) -> Sequence[Shard]:
    """Return the tar files if there are any, or else the tables, or else the clips, of a folder or one file."""
    below = (file for files in directories(path) for file in files) if path == folder else ()
    files = [file for file in below if IN_FOLDERS.search(file.name)] or [path]
    if packed := [file for file in files if PACKED.search(file.name)]:
        raise ValueError(f"{packed[0]} is compressed, so that no clip in it can be found; make it a plain .tar file")
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    tables = [file for file in files if file.suffix.lower() in (".csv", ".jsonl")]
    if path == folder and caption is not None:
        tables = []  # they would only say other captions
    if not tars and not tables:
        return [checked(kinds.folder(path, folder, prefix, caption), kinds)]
    if path == folder:
        kind, first = "tar files" if tars else "tables", (tars or tables)[0].name
        log.info("Of %s its %s alone are read: %d, from %s on", folder, kind, len(tars or tables), first)
    return [(kinds.tar if tars else Table)(file, folder, prefix, caption) for file in tars or tables]


def checked(folder: Folder, kinds: Kinds) -> Folder:
    if all(source.missing for source in folder):
        raise ValueError(f"{folder.path} holds no {kinds.name}{kinds.none_of}")
    return folder


class Folder(Shard):
    """The clips below a folder as `find_clips` knows them, without tables; or a single clip."""

    def __iter__(self) -> Iterator[Source]:
        if self.path == self.folder:
            for files in directories(self.path):
                for group in groups(files):
                    yield from self.samples(group)
        else:
            for source in find_clips(self.path, self.caption):
                yield replace(source, name=self.named(source.name))

    def stamp(self) -> str:
        """Return a hash of the files' names; 100,000 of them may lie far away, and are not read."""
        digest = blake2b(digest_size=16)
        for files in directories(self.path) if self.path == self.folder else [[self.path]]:
            for file in files:
                digest.update(repr(clip_name(file, self.folder)).encode())
        return digest.hexdigest()

    def samples(self, files: list[Path]) -> list[Source]:
        """Return the clips among files that belong together, and captions of clips that are not there."""
        clips = {clip_name(file, self.folder): file for file in files if is_clip(file)}
        if self.caption is not None:
            sources = [Source(path, name, self.caption) for name, path in clips.items()]
        else:
            try:
                sources = captioned(self.folder, clips, read_captions(self.folder, files))
            except ValueError as error:  # a caption that is not text
                named = clips or {clip_name(files[0], self.folder): files[0]}
                sources = [Source(path, name, "", str(error), not clips) for name, path in named.items()]
        return [replace(source, name=self.named(source.name)) for source in sources]


def directories(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[list[Path]]:
    """Return the files in a folder, and then those in each folder of it, in natural order.

    What `find_clips` takes for one clip counts as a file: a folder of pictures, an empty one, a link back.
    """
    above |= {folder.resolve(), *folder.resolve().parents}
    files, folders = [], []
    for entry in visible(folder):
        (folders if entry.is_dir() and entry.resolve() not in above and is_branch(entry) else files).append(entry)
    yield files
    for entry in folders:
        yield from directories(entry, above)


def visible(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def is_branch(path: Path) -> bool:
    """Tell whether a path is a folder to look for clips in: neither a file, nor empty, nor itself a clip."""
    return path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()) and not picture_files(path)


def is_clip(path: Path) -> bool:
    return path.suffix.lower() not in BESIDE or path.is_dir()


def groups(files: list[Path]) -> Iterable[list[Path]]:
    """Return clips with the text files that may be their captions, so that the captions of others need not be read."""
    stems = {clip_key(file.name): stem(file) for file in files if is_clip(file)}
    found = {}
    for file in files:
        key = stem(file)
        while stems.get(key, key) != key:  # from a.mp4.txt to "a.mp4", and from there to "a"
            key = stems[key]
        found.setdefault(key, []).append(file)
    return found.values()


def stem(file: Path) -> str:
    return clip_key(file.name).removesuffix(file.suffix)


class Table(Shard):
    """The rows of a .csv or .jsonl file with file_name and text (or caption), in their order."""

    def __iter__(self) -> Iterator[Source]:
        number = 0
        for number, row in self.rows():
            yield self.sample(row, number)
        if not number:
            yield Source(self.path, self.name, problem="no row in it", missing=True)

    def stamp(self) -> str:
        return content_hash(self.path)

    def rows(self) -> Iterator[tuple[int, dict | str]]:
        """Return the number of each line with its row, or with its text where that is JSON."""
        number = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                if self.path.suffix.lower() == ".csv":
                    table = csv.DictReader(file)
                    for row in table:
                        yield (number := table.line_num), row
                else:
                    for number, line in enumerate(file, start=1):
                        if line.strip():
                            yield number, line
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text; save it again as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{self.path} cannot be read after line {number}: {error}") from error

    def sample(self, row: dict | str, number: int) -> Source:
        origin = f"{self.path.name}, line {number}"
        try:
            row = parse_line(row, self.path, number) if isinstance(row, str) else row
            caption = caption_of_row(row if self.caption is None else row | {"text": self.caption}, origin)
            (caption.clip + caption.text).encode()  # JSON can spell what is no text
        except (ValueError, RecursionError) as error:
            return Source(self.path, self.named(origin), problem=str(error).removeprefix(f"{origin} "), missing=True)
        name = self.named(caption.clip)
        if leads_outside(caption.clip):
            return Source(self.path, name, problem=f"{origin} names no file below {self.folder.name}", missing=True)
        problem = None if caption.text or self.caption is not None else f"its caption is empty ({origin})"
        return Source(self.folder / caption.clip, name, caption.text, problem)


def leads_outside(name: str) -> bool:
    """Tell whether a name is anything but a path downwards, on any system: absolute, with a drive, with "..", or
    empty."""
    path = PureWindowsPath(name)  # which knows both slashes
    return not path.parts or bool(path.anchor) or ".." in path.parts


class Tar(Shard):
    """The samples of a tar file, see tars.py."""

    def __iter__(self) -> Iterator[Source]:
        return tar_samples(self.path, self.name, self.caption)

    def stamp(self) -> str:
        with self.path.open("rb") as file:
            return name_of(self.path.stat().st_size, blake2b(file.read(STAMP)).hexdigest())


@dataclass(frozen=True)
class Kinds:
    """How the folders and tar files of a set are read, what it is a set of, and what a folder without any lacks."""

    name: str
    folder: type[Folder]
    tar: type[Tar]
    none_of: str = ", and no .tar file"


CLIPS = Kinds("clips", Folder, Tar, ": no video, no animated picture, no folder of numbered pictures, no .tar file")


@contextmanager
def opened(source: Source) -> Iterator[Source]:
    """Return the source with a path that can be decoded for as long as the context lasts.

    Raises:
        ClipError: there is no such clip.
    """
    if source.missing:
        raise ClipError(source.problem)
    if isinstance(source, Member):
        with unpacked(source) as path:
            yield Source(path, source.name, source.caption, source.problem)
    else:
        yield replace(source, path=on_disk(source.path))


def on_disk(path: Path) -> Path:
    """Return the path as the disk spells it: composed, as names in tables come here, or decomposed as on macOS."""
    there = next(parent for parent in path.parents if parent.exists())
    rest = path.relative_to(there).as_posix()
    for name in (rest, unicodedata.normalize("NFD", rest)):
        if ((there / name).is_file() or (there / name).is_dir()) and os.access(there / name, os.R_OK):
            return there / name
    raise ClipError("there is no such clip, or it may not be read")


def set_hash(shards: Iterable[Shard]) -> str:
    """Tell whether two runs read the same set, as far as that shows quickly.

    By the sizes and the beginnings of tar files, the contents of tables, the names of files in folders.
    """
    digest = blake2b(digest_size=16)
    for shard in shards:
        digest.update(repr((shard.name, shard.stamp(), shard.caption)).encode())
    return digest.hexdigest()
