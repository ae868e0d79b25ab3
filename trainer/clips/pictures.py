"""Sets of captioned pictures: folders, tables and tar files of them, as clips have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from .cache import cached, content_hash, encode_clip_frames, name_of
from .decoding import BESIDE, STILLS, cover, load_still
from .find import Source
from .shards import Folder, Kinds, Shard, Tar, groups, shards_of, visible
from .tars import tar_samples

PICTURE_KINDS = tuple(sorted(suffix.removeprefix(".") for suffix in STILLS))


class PictureFolder(Folder):
    """The pictures below a folder, each a sample of its own; or a single picture."""

    def __iter__(self) -> Iterator[Source]:
        for files in self.directories(self.path if self.path.is_dir() else self.path.parent):
            for group in groups(files):
                yield from self.samples(group)

    def stamp(self) -> str:
        return name_of([source.name for source in self])

    def directories(self, folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[list[Path]]:
        """Return the pictures in a folder with what may caption them, then those in each folder of it."""
        above |= {folder.resolve(), *folder.resolve().parents}
        entries = visible(folder)
        alone = self.path if not self.path.is_dir() else None
        yield [e for e in entries if e.is_file() and (is_picture(e) and alone in (None, e) or e.suffix in BESIDE)]
        for entry in entries if alone is None else ():
            if entry.is_dir() and entry.resolve() not in above:
                yield from self.directories(entry, above)


class PictureTar(Tar):
    """The samples of a tar file whose pictures have captions of the same name."""

    def __iter__(self) -> Iterator[Source]:
        return tar_samples(self.path, self.name, self.caption, PICTURE_KINDS)


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in STILLS


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
        return encode_clip_frames(np.array(cover(load_still(source.path), size))[None], vae, encode)

    return cached(Path(folder) / f"{name}.safetensors", encoded)
