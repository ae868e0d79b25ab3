"""A set of clips as a list, whatever form it has. What else is asked of a clip is found here as well."""

from __future__ import annotations

from pathlib import Path

from .frames import DecodedClip, decode, fit, too_short
from .shards import shards_of
from .source import ClipFormat, Source

__all__ = ["ClipFormat", "DecodedClip", "Source", "decode", "find_clips", "fit", "too_short"]


def find_clips(videos: Path, caption: str | None = None) -> list[Source]:
    """Find every clip of a set, in its order: of a folder, a table, tar files, or one clip.

    Args:
        caption: one caption for all; without it captions come from tables, tar files, or files beside the clips.

    Returns:
        One source per clip and caption, and one for each row that names no clip. Nothing is decoded.

    Raises:
        FileNotFoundError, ValueError: as of `shards_of`.
    """
    return list(dict.fromkeys(source for shard in shards_of(videos, caption) for source in shard))
