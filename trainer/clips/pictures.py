"""Sets of captioned pictures: folders, tables and tar files of them, as clips have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from .cache import cached, content_hash, encode_clip_frames, name_of
from .decoding import cover
from .folders import captioned, name_in, pictures_in, walk, words_in
from .kinds import STILLS
from .shards import Folder, Kinds, Shard, Tar, shards_of
from .source import Source
from .stills import load_still
from .tars import tar_samples

PICTURE_KINDS = tuple(sorted(suffix.removeprefix(".") for suffix in STILLS))


class PictureFolder(Folder):
    """The pictures below a folder, each a sample of its own; or a single picture."""

    def samples(self) -> Iterator[Source]:
        if self.path.is_dir():
            for directory in walk(self.path, sequences=False):
                yield from captioned(pictures_in(directory), words_in(directory.files), self.folder, self.caption)
        elif self.path.suffix.lower() in STILLS:
            yield from captioned([self.path], words_in(self.path.parent.iterdir()), self.folder, self.caption)

    def stamp(self) -> str:
        return name_of([source.name for source in self])


class PictureTar(Tar):
    """The samples of a tar file whose pictures have captions of the same name."""

    def samples(self) -> Iterator[Source]:
        return tar_samples(self.path, name_in(self.path, self.folder), self.caption, PICTURE_KINDS, self.aside)


def picture_shards(images: Path, caption: str | None = None) -> list[Shard]:
    """Find the tar files, tables and folders that make up a set of pictures. Arguments and errors as of `shards_of`."""
    return shards_of(images, caption, Kinds("pictures", PictureFolder, PictureTar))


def picture_latents(
    source: Source, size: tuple[int, int], vae: nn.Module, folder: Path, encode, weights: str
) -> Tensor:
    """Return the scaled latents of a picture, (1, 4, height, width), from the cache or encoded now; arguments as of
    `clip_latents`."""
    name = name_of("picture", content_hash(source.path), size, weights)

    def encoded() -> Tensor:
        return encode_clip_frames([np.array(cover(load_still(source.path), size))[None]], vae, encode)

    return cached(Path(folder) / f"{name}.safetensors", encoded)
