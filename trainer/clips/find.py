"""A set of clips as a list, whatever form it has. What else is asked of a clip is found here as well."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ..options import CameraOptions
from .frames import DecodedClip, decode, fit, too_short
from .shards import shards_of
from .source import Camera, ClipFormat, Source
from .views import views_of

__all__ = ["ClipFormat", "DecodedClip", "Source", "decode", "find_clips", "fit", "too_short"]


def find_clips(videos: Path, caption: str | None = None, camera: Camera | None = None) -> list[Source]:
    """Find every clip of a set, in its order: of a folder, a table, tar files, or one clip.

    Args:
        caption: one caption for all; without it captions come from tables, tar files, or files beside the clips.
        camera: makes clips of pictures, and others of clips; None: clips are what they are.

    Returns:
        One source per clip and caption, and one for each row that names no clip. Nothing is decoded.

    Raises:
        FileNotFoundError, ValueError: as of `shards_of`.
    """
    return list(dict.fromkeys(samples_of(videos, caption, camera)))


def camera_of(options: CameraOptions, frames: int) -> Camera | None:
    """Return the camera that options ask for, over so many frames."""
    return Camera(options.camera, frames, options.camera_range) if options.camera else None


def samples_of(videos: Path, caption: str | None, camera: Camera | None) -> Iterator[Source]:
    """Return the samples of a set one after the other, arguments as of `find_clips`."""
    return views_of(videos, caption, camera) if camera else chain.from_iterable(shards_of(videos, caption))
