"""Sets of clips of any size: folders, tables and tar files, read one sample after the other.

A sample is a Source: its name, its caption, and where the clip lies. Iterating decodes nothing and keeps nothing, so
that passing over samples is cheap. What cannot be used is a sample with a problem, and has its place like the others.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from webdataset.shardlists import expand_urls

from .cache import content_hash, name_of
from .folders import Aside, Directory, captioned, name_in, samples_in, strangers, walk, words_in
from .kinds import CLIP_SUFFIXES, is_clip, picture_files
from .shot import ClipError
from .source import Source
from .tables import is_table, samples_of
from .tars import Member, tar_samples, unpacked

log = logging.getLogger("stillmotion")

PACKED = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
STAMP = 2**16  # bytes of a tar file, from its start, that its stamp depends on


@dataclass(frozen=True)
class Shard(ABC):
    """A part of a set. Iterating gives its samples, at least one, always in the same order.

    `folder` is where the names in it start, `prefix` what stands before them to tell several folders apart, `caption`,
    if any, that of all samples. `aside` keeps count of what is no sample.
    """

    path: Path
    folder: Path
    prefix: str = ""
    caption: str | None = None
    aside: Aside = field(default_factory=Aside, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.named(name_in(self.path, self.folder))

    def named(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def __iter__(self) -> Iterator[Source]:
        for source in self.samples():
            yield replace(source, name=self.named(source.name)) if self.prefix else source
        self.aside.say(self.path)

    @abstractmethod
    def samples(self) -> Iterator[Source]:
        """Return the samples with names that start in `folder`."""

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
        ValueError: a folder holds no clips, a file is none, or a tar file is compressed.
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


def is_branch(path: Path) -> bool:
    """Tell whether a path is a folder to look for clips in: neither a file, nor itself a clip."""
    return path.is_dir() and not picture_files(path)


def parts_of(path: Path, folder: Path, prefix: str, caption: str | None, kinds: Kinds) -> Sequence[Shard]:
    """Return the tar files if there are any, or else the tables, or else the clips, of a folder or one file."""
    if path != folder:
        return [part_of(path, folder, prefix, caption, kinds)]
    files = [file for directory in walk(path) for file in directory.files if may_hold_clips(file)]
    if packed := [file for file in files if PACKED.search(file.name)]:
        raise ValueError(f"{packed[0]} is compressed, so that no clip in it can be found; make it a plain .tar file")
    tars = [file for file in files if file.suffix.lower() == ".tar"]
    tables = [file for file in files if is_table(file)] if caption is None else []  # they would say other captions
    if not tars and not tables:
        return [checked(kinds.folder(path, folder, prefix, caption), kinds)]
    kind, first = "tar files" if tars else "tables", (tars or tables)[0].relative_to(folder)
    others = sum(file.suffix.lower() in CLIP_SUFFIXES for directory in walk(path) for file in directory.files)
    more = f"; {others} clips lie in it, of which those that {kind} do not name are left out" if others else ""
    log.info("Of %s its %s alone are read: %d, from %s on%s", folder, kind, len(tars or tables), first, more)
    return [(kinds.tar if tars else Table)(file, folder, prefix, caption) for file in tars or tables]


def may_hold_clips(file: Path) -> bool:
    return bool(PACKED.search(file.name)) or file.suffix.lower() == ".tar" or is_table(file)


def part_of(path: Path, folder: Path, prefix: str, caption: str | None, kinds: Kinds) -> Shard:
    """Return what one file, or a folder that is one clip, is of a set."""
    if PACKED.search(path.name):
        raise ValueError(f"{path} is compressed, so that no clip in it can be found; make it a plain .tar file")
    if path.suffix.lower() in (".csv", ".jsonl") and path.is_file():
        return Table(path, folder, prefix, caption)
    if path.suffix.lower() == ".tar":
        return kinds.tar(path, folder, prefix, caption)
    return checked(kinds.folder(path, folder, prefix, caption), kinds)


def checked(folder: Folder, kinds: Kinds) -> Folder:
    if next(iter(replace(folder, aside=Aside()).samples()), None) is None:  # what it leaves aside comes again
        if not folder.path.is_dir():
            raise ValueError(f"{folder.path} is no clip; give a folder with {kinds.name}, or one of them")
        raise ValueError(f"{folder.path} holds no {kinds.name}{kinds.none_of}")
    return folder


class Folder(Shard):
    """The clips below a folder, or a single one, with the captions beside them."""

    def samples(self) -> Iterator[Source]:
        if self.path == self.folder:
            for directory in walk(self.path):
                yield from samples_in(directory, self.folder, self.caption, self.aside)
        elif self.path.is_dir() or is_clip(self.path):
            beside = words_in(self.path.parent.iterdir())
            inside = strangers(self.path) if self.path.is_dir() else []
            self.aside.add(name_in(file, self.folder) for file in inside)
            yield from captioned([self.path], beside, self.folder, self.caption)

    def stamp(self) -> str:
        """Return a hash of the files' names; 100,000 of them may lie far away, and are not read."""
        digest = blake2b(digest_size=16)
        below = walk(self.path) if self.path == self.folder else [Directory(self.path.parent, [self.path])]
        for directory in below:
            for file in (*directory.files, *directory.sequences):
                digest.update(repr(name_in(file, self.folder)).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()


class Table(Shard):
    """The rows of a .csv or .jsonl file with file_name and text (or caption), in their order."""

    def samples(self) -> Iterator[Source]:
        return samples_of(self.path, self.folder, self.caption)

    def stamp(self) -> str:
        return content_hash(self.path)


class Tar(Shard):
    """The samples of a tar file, see tars.py."""

    def samples(self) -> Iterator[Source]:
        return tar_samples(self.path, name_in(self.path, self.folder), self.caption, aside=self.aside)

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
        ClipError: there is no such clip, or it goes away meanwhile.
    """
    if source.missing:
        raise ClipError(source.problem)
    try:
        if isinstance(source, Member):
            with unpacked(source) as path:
                yield Source(path, source.name, source.caption, source.problem, camera=source.camera)
        else:
            yield replace(source, path=on_disk(source.path))
    except OSError as error:
        if not is_about(error, source):
            raise
        raise ClipError(f"it cannot be read ({error.strerror or error})") from error


def is_about(error: OSError, source: Source) -> bool:
    """Tell whether the clip itself could not be read, and not, say, the cache be written."""
    return error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(source.path)


def on_disk(path: Path) -> Path:
    """Return the path as the disk spells it: composed, as names in tables come here, or decomposed as on macOS."""
    try:
        there = next(parent for parent in path.parents if parent.exists())
        rest = path.relative_to(there).as_posix()
        for name in dict.fromkeys((rest, unicodedata.normalize("NFD", rest))):
            if ((there / name).is_file() or (there / name).is_dir()) and os.access(there / name, os.R_OK):
                return there / name
    except OSError as error:  # a name that no disk can hold
        raise ClipError(f"it cannot be read ({error.strerror or error})") from error
    raise ClipError("there is no such clip, or it may not be read")


def set_hash(shards: Iterable[Shard]) -> str:
    """Tell whether two runs read the same set, as far as that shows quickly.

    By the sizes and the beginnings of tar files, the contents of tables, the names of files in folders.
    """
    digest = blake2b(digest_size=16)
    for shard in shards:
        digest.update(repr((shard.name, shard.stamp(), shard.caption)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
