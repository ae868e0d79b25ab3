"""The frames of a clip at a target fps: a few at a time, as training reads them, or all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .camera import camera_shots
from .decoding import CELL, ClipError, Shots, cover, sample, shots_of
from .source import Source

CHUNK = 8  # frames that are decoded before they are used
MOST_LATENTS, MOST_PIXELS = 2**28, 2**31
"""Bytes that a clip may take of the memory, some times over: of its latents in fp32, or of its pixels where it is
wanted whole. A broken time stamp may ask for millions of frames."""


@dataclass(frozen=True)
class DecodedClip:
    """Decoded frames, uint8 (frames, height, width, 3), `fps` of them a second.

    `seconds`, `native_fps` (a mean), `native_size` (width, height, upright) are those of the part that was read;
    `note` says what is wrong with the rest of the file, and what its pictures were before, or nothing.
    """

    frames: np.ndarray
    fps: float
    seconds: float
    native_fps: float
    native_size: tuple[int, int]
    note: str = ""


class Frames:
    """Reads a clip once from its beginning: the frame that is on screen at `start` + k / `fps` seconds, in chunks.

    Iterating gives arrays uint8 (up to CHUNK, height, width, 3), and raises ClipError where the clip cannot be used.
    `count` is how many frames came so far; what else is known of the clip is known at the end.

    Args:
        most: how many frames to read; None: all there are.
        start: seconds from the first frame.
        size: width and height in pixels that every frame shall cover (see `cover`); None: as they are.
        whole: all frames will be kept as pixels.
    """

    def __init__(
        self, source: Source, fps: float, most: int | None = None, start: float = 0.0, size=None, whole: bool = False
    ):
        self.fps, self.most, self.start, self.size, self.whole = fps, most, start, size, whole
        of_camera = source.camera and camera_shots(source.path, source.camera, fps, size)
        self.shots, self.count = Shots(of_camera) if of_camera else shots_of(source.path, fps), 0

    def __iter__(self) -> Iterator[np.ndarray]:
        chunk = []
        for picture in sample(self.shots, self.fps, self.start, self.check_size):
            chunk.append(np.asarray(cover(picture, self.size) if self.size else picture))
            self.count += 1
            if len(chunk) == CHUNK or self.count == self.most:
                yield np.stack(chunk)
                chunk = []
            if self.count == self.most:
                break
        if chunk:
            yield np.stack(chunk)
        self.check_end()

    def check_size(self, frames: int, size: tuple[int, int]) -> None:
        """Refuse a clip that will have so many frames, whose own size is `size`, before they are made."""
        width, height = self.size or size
        each = bytes_of(width, height, self.whole)
        most = MOST_PIXELS if self.whole else MOST_LATENTS
        if min(frames, self.most or frames) * each > most:
            raise ClipError(
                f"longer than {most // each / self.fps:.4g} s, of which the {'frames' if self.whole else 'latents'} at"
                f" {self.fps:g} fps and {width}x{height} pixels take {most >> 20} MiB of memory, the most for one"
                " clip; cut it up, or take fewer frames a second or smaller ones"
            )

    def check_end(self) -> None:
        shots = self.shots
        if shots.count < 2:
            raise ClipError(
                shots.damage or ("a single picture, not a clip" if shots.count else "no frame of it can be decoded")
            )
        if self.count < (self.most or 1):
            raise ClipError(too_short(shots.seconds - self.start, self.count, self.fps, self.most or 1, shots.damage))

    @property
    def native_fps(self) -> float:
        return self.shots.count / self.shots.seconds


def bytes_of(width: int, height: int, pixels: bool) -> int:
    """Return how much a frame takes: three bytes for each pixel, or four numbers of fp32 for each cell."""
    return 3 * width * height if pixels else 16 * max(1, width // CELL) * max(1, height // CELL)


def decode(source: Source, fps: float, frames: int | None = None, start: float = 0.0, size=None) -> DecodedClip:
    """Read a clip whole; arguments as of `Frames`. Its pixels take twelve times the memory of its latents.

    Raises:
        ClipError: the clip cannot be used; the message says why.
    """
    read = Frames(source, fps, frames, start, size, whole=True)
    whole, shots = np.concatenate(list(read)), read.shots
    return DecodedClip(whole, fps, shots.seconds, read.native_fps, shots.size, shots.note)


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
