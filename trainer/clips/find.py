"""Clips in a folder: which there are, what their captions are, and their frames at a target fps.

A clip is a video, an animated picture (GIF, WebP, APNG), or a folder of numbered pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .captions import Caption, clip_key, read_caption_text, read_metadata, read_table
from .decoding import BESIDE, ClipError, cover, natural_key, picture_files, sample, shots_of

MOST_FRAMES = 4096  # about 2 GB of frames at 512x320; a broken time stamp may otherwise ask for millions


@dataclass(frozen=True)
class Source:
    """A clip as found, not yet decoded; `problem` says why it cannot be used, where that is known already.

    `missing`: only a caption file speaks of it; nothing that such a file names is ever opened.
    """

    path: Path
    name: str
    caption: str = ""
    problem: str | None = None
    missing: bool = False


@dataclass(frozen=True)
class ClipFormat:
    """The form in which training sees every clip: `fps`, a number of `frames`, `size` (width, height) in pixels."""

    fps: float
    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class DecodedClip:
    """Decoded frames, uint8 (frames, height, width, 3), `fps` of them a second.

    `seconds`, `native_fps` (a mean), `native_size` (width, height, upright) are those of the part that was read;
    `note` says what is wrong with the rest of the file, or nothing.
    """

    frames: np.ndarray
    fps: float
    seconds: float
    native_fps: float
    native_size: tuple[int, int]
    note: str = ""


def find_clips(folder: Path, caption: str | None = None) -> list[Source]:
    """Find every clip below `folder` (or `folder` itself, a video or a folder of pictures), in natural order.

    Args:
        caption: one caption for all; without it captions come from the files beside the clips.

    Returns:
        One source per clip, and one for each caption that names a clip that is not there. Nothing is decoded.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; give the folder with the clips")
    folder = folder.absolute()  # so that "." has a name
    if folder.is_file():
        files = [path for path in folder.parent.iterdir() if path.is_file()]
        sources = [source for source in sources_of(folder.parent, files, caption) if source.path == folder]
        if not sources:
            raise ValueError(f"{folder} is no clip; give a folder with clips, or one clip")
        return sources
    sources = sources_of(folder, list(walk(folder)), caption)
    if not sources:
        raise ValueError(f"{folder} holds no clips: no video, no animated picture, no folder of numbered pictures")
    return sources


def sources_of(folder: Path, files: list[Path], caption: str | None) -> list[Source]:
    clips = {clip_name(path, folder): path for path in files if path.suffix.lower() not in BESIDE or path.is_dir()}
    if not clips:
        return []
    if caption is not None:
        return [Source(path, name, caption) for name, path in clips.items()]
    return captioned(folder, clips, read_captions(folder, files))


def walk(folder: Path) -> Iterator[Path]:
    """Return the files below a folder; a folder of pictures counts as one file, a link back to where we are as well."""
    if picture_files(folder):
        yield folder
        return
    above = (folder.resolve(), *folder.resolve().parents)
    for entry in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and entry.resolve() not in above:
            yield from list(walk(entry)) or [entry]
        else:
            yield entry


def clip_name(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def read_captions(folder: Path, files: list[Path]) -> list[Caption]:
    captions = []
    beside = folder.with_name(folder.name + ".txt")  # the caption of a folder that is itself a clip
    for path in [*files, beside] if files == [folder] and beside.is_file() else files:
        name = path.name if path == beside else clip_name(path, folder)
        if path.suffix.lower() == ".txt" and not path.stem.lower().startswith(("readme", "license")):
            captions.append(read_caption_text(path, name))
        elif path.name == "metadata.jsonl":
            captions += read_metadata(path)
        elif path.suffix.lower() == ".csv":
            captions += read_table(path)
    return captions


def captioned(folder: Path, clips: dict[str, Path], captions: list[Caption]) -> list[Source]:
    """Give each clip its caption; what does not match becomes a source with a problem."""
    known = {}
    for name in clips:
        for key in (clip_key(name), clip_key(name).removesuffix(Path(name).suffix)):
            known.setdefault(key, []).append(name)
    found = {name: [] for name in clips}
    for caption in captions:
        for name in known.get(caption.clip, []):
            found[name].append(caption)
    lost = [caption for caption in captions if caption.clip not in known]
    return [source_of(path, name, found[name]) for name, path in clips.items()] + [
        Source(folder, caption.clip, problem=f"{caption.origin} names it, but there is no such clip", missing=True)
        for caption in lost
    ]


def source_of(path: Path, name: str, captions: list[Caption]) -> Source:
    texts = sorted({caption.text for caption in captions})
    if not captions:
        text_file = Path(name).name if path.is_dir() else Path(name).stem
        return Source(path, name, problem=f"no caption: write {text_file}.txt beside it, or give --caption")
    if len(texts) > 1:
        return Source(path, name, problem="two captions: " + " and ".join(caption.origin for caption in captions))
    return Source(path, name, texts[0], None if texts[0] else f"its caption is empty ({captions[0].origin})")


def decode(source: Source, fps: float, frames: int | None = None, start: float = 0.0, size=None) -> DecodedClip:
    """Read a clip once from its beginning and keep the frame that is on screen at `start` + k / `fps` seconds.

    Args:
        frames: how many to read; None: all there are.
        start: seconds from the first frame.
        size: width and height in pixels that every frame shall cover (see `cover`); None: as they are.

    Raises:
        ClipError: the clip cannot be used; the message says why.
    """
    shots = shots_of(source.path, fps)
    kept = []
    for picture in sample(shots, fps, start):
        kept.append(np.asarray(cover(picture, size) if size else picture))
        if len(kept) == frames:
            break
        if len(kept) > MOST_FRAMES:
            raise ClipError(f"longer than {MOST_FRAMES / fps:.0f} s ({MOST_FRAMES} frames at {fps:g} fps); cut it up")
    if shots.count < 2:
        raise ClipError(
            shots.note or ("a single picture, not a clip" if shots.count else "no frame of it can be decoded")
        )
    if len(kept) < (frames or 1):
        raise ClipError(too_short(shots.seconds - start, len(kept), fps, frames or 1, shots.note))
    return DecodedClip(np.stack(kept), fps, shots.seconds, shots.count / shots.seconds, shots.size, shots.note)


def too_short(seconds: float, have: int, fps: float, need: int, note: str = "") -> str:
    """Say what a clip has and what is needed of it."""
    text = f"too short: {seconds:.2f} s are {have} frames at {fps:g} fps; {need} frames ({need / fps:.2f} s) are needed"
    return f"{text} ({note})" if note else text


def fit(frames: np.ndarray, size: tuple[int, int], offset: tuple[int, int] | None = None) -> np.ndarray:
    """Scale frames to cover `size` and crop them to it, at their middle or at `offset` (left, top) pixels.

    Args:
        frames: uint8 (frames, height, width, 3); what `decode` covered with the same size is only cropped.
        size: width and height in pixels, multiples of 8.
    """
    covered = np.stack([np.asarray(cover(Image.fromarray(frame), size)) for frame in frames])
    (width, height), (_, h, w, _) = size, covered.shape
    left, top = offset or ((w - width) // 2, (h - height) // 2)
    if not (0 <= left <= w - width and 0 <= top <= h - height):
        raise ValueError(f"a crop of {width}x{height} at {left}, {top} lies outside the frame of {w}x{h}")
    return covered[:, top : top + height, left : left + width]
