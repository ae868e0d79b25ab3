"""Sets of what a camera moves over: pictures, clips, or both, in folders, tables and tar files, as clips have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .folders import captioned, name_in, walk, words_in
from .kinds import STILLS, is_clip
from .pictures import PICTURE_KINDS
from .shards import Folder, Kinds, Tar, shards_of
from .source import Camera, Source
from .tars import KINDS, tar_samples


class Views(Folder):
    """The pictures and clips below a folder, each a sample of its own, numbered pictures too; or a single one."""

    def samples(self) -> Iterator[Source]:
        if self.path.is_dir():
            for directory in walk(self.path, sequences=False):
                seen = [file for file in directory.files if file.suffix.lower() in STILLS or is_clip(file)]
                yield from captioned(seen, words_in(directory.files), self.folder, self.caption)
        elif self.path.suffix.lower() in STILLS or is_clip(self.path):
            yield from captioned([self.path], words_in(self.path.parent.iterdir()), self.folder, self.caption)


class PackedViews(Tar):
    """The pictures and clips of a tar file."""

    def samples(self) -> Iterator[Source]:
        kinds = tuple(dict.fromkeys((*KINDS, *PICTURE_KINDS)))
        return tar_samples(self.path, name_in(self.path, self.folder), self.caption, kinds, self.aside)


VIEWS = Kinds("pictures or clips", Views, PackedViews)


def views_of(videos: Path, caption: str | None, camera: Camera) -> Iterator[Source]:
    """Find every picture and clip of a set for a camera to move over. Arguments and errors as of `shards_of`."""
    for shard in shards_of(videos, caption, VIEWS):
        yield from (replace(source, camera=camera) for source in shard)
