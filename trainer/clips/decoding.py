"""Pictures and their times, from a video, an animated picture, or a folder of numbered pictures.

A file is read once, forwards, and only the pictures that are asked for are converted. Nothing in a header is
believed: what counts is what decodes.
"""

import math
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path

from PIL import Image

from .kinds import MOVING, STILLS, picture_files
from .shot import ClipError, Damage, Shot
from .stills import animation_shots, still_shot
from .video import video_shots

BY_PILLOW = {f".{suffix}" for suffix in MOVING} | STILLS
TOLERANCE = 0.002  # seconds; Matroska rounds times to milliseconds
CELL = 8  # pixels of a latent's cell, the steps in which sizes and crops move
WIDEST = 8  # a covering frame may have so many times the area that is trained on, not more


class Shots:
    """Iterates over the shots of a clip and keeps what is known of those that went by."""

    def __init__(self, shots: Iterator[Shot]):
        self.shots = shots
        self.count, self.seconds, self.size, self.damage, self.remark = 0, 0.0, (0, 0), "", ""

    @property
    def note(self) -> str:
        return ", ".join(filter(None, (self.damage, self.remark)))

    def __iter__(self) -> Iterator[Shot]:
        try:
            for shot in self.shots:
                if self.count and shot.size != self.size:
                    raise ClipError("its frames change size, from {}x{} to {}x{}".format(*self.size, *shot.size))
                self.count, self.seconds, self.size = self.count + 1, shot.time + shot.duration, shot.size
                self.remark = self.remark or shot.note
                yield shot
        except Damage as damage:
            self.damage = f"{damage} after {self.count} frames ({self.seconds:.2f} s)"


def shots_of(path: Path, fps: float) -> Shots:
    """Return the shots of any kind of clip; `fps` is that of a folder of pictures, which knows no times."""
    if path.is_dir():
        return Shots(folder_shots(path, fps))
    if not path.is_file():
        raise ClipError("not a file that can be read")
    if path.stat().st_size == 0:
        raise ClipError("empty, 0 bytes")
    return Shots(animation_shots(path) if path.suffix.lower() in BY_PILLOW else video_shots(path))


def folder_shots(folder: Path, fps: float) -> Iterator[Shot]:
    """Return the shots of a folder of numbered pictures, one every 1 / `fps` seconds."""
    files = picture_files(folder)
    if not files:
        raise ClipError("a folder without clips or pictures")
    for number, path in enumerate(files):
        picture, note = still_shot(path)
        yield Shot(number / fps, 1 / fps, picture.size, picture.copy, note)


def sample(
    shots: Shots, fps: float, start: float = 0.0, check: Callable[[int, tuple[int, int]], None] = lambda *_: None
) -> Iterator[Image.Image]:
    """Yield the picture that is on screen at `start`, `start` + 1 / `fps`, ... to the end, converting no others.

    Args:
        check: is told before the pictures of a shot how many there will have been after it, and their size.
    """
    wanted = 0
    for shot, following in pairwise(chain(shots, [None])):
        end = following.time if following else shot.time + shot.duration
        picture = None
        check(math.ceil((end - TOLERANCE - start) * fps), shot.size)
        while start + wanted / fps < end - TOLERANCE:
            picture = picture or shot.picture()
            yield picture
            wanted += 1


def cover(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture, keeping its aspect, to the smallest size that covers `size` (width, height, multiples of 8).

    Its own width and height are multiples of 8 as well, so that it can be encoded whole and cropped by cells; less
    than 8 pixels are lost at the middle's two sides.
    """
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(least, int(side * scale + 1e-6) // CELL * CELL) for least, side in zip(size, picture.size))
    if width * height > WIDEST * size[0] * size[1]:
        raise ClipError("its shape, {}x{}, is too far from {}x{}; crop it first".format(*picture.size, *size))
    if (width, height) == picture.size:
        return picture
    left, top = max(0.0, picture.width - width / scale) / 2, max(0.0, picture.height - height / scale) / 2
    box = (left, top, picture.width - left, picture.height - top)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
