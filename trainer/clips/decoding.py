"""Pictures and their times, from a video, an animated picture, or a folder of numbered pictures.

A file is read once, forwards, and only the pictures that are asked for are converted. Nothing in a header is
believed: what counts is what decodes.
"""

import multiprocessing
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, pairwise
from pathlib import Path

import av
from PIL import Image, ImageOps

STILLS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".avif"}
ANIMATED = {".gif", ".apng"} | STILLS
BESIDE = {".txt", ".jsonl", ".csv", ".json", ".md", ".toml", ".db"}  # lies beside clips and is none; .db: Thumbs.db
TOLERANCE = 0.002  # seconds; Matroska rounds times to milliseconds
CELL = 8  # pixels of a latent's cell, the steps in which sizes and crops move
WIDEST = 8  # a covering frame may have so many times the area that is trained on, not more
UNREADABLE = (  # what Pillow's readers raise on damaged files
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, RuntimeError, struct.error),
    Image.DecompressionBombError,
)


class ClipError(ValueError):
    """A clip that cannot be used; the message says why, and leaves the clip's name to the caller."""


class Damage(Exception):
    """The file breaks off here; the shots before are good."""


@dataclass(frozen=True)
class Shot:
    """One picture: seconds from the first one, seconds it stays, width and height upright, and how to convert it."""

    time: float
    duration: float
    size: tuple[int, int]
    picture: Callable[[], Image.Image]


class Shots:
    """Iterates over the shots of a clip and keeps what is known of those that went by."""

    def __init__(self, shots: Iterator[Shot]):
        self.shots = shots
        self.count, self.seconds, self.size, self.note = 0, 0.0, (0, 0), ""

    def __iter__(self) -> Iterator[Shot]:
        try:
            for shot in self.shots:
                if self.count and shot.size != self.size:
                    raise ClipError("its frames change size, from {}x{} to {}x{}".format(*self.size, *shot.size))
                self.count, self.seconds, self.size = self.count + 1, shot.time + shot.duration, shot.size
                yield shot
        except Damage as damage:
            self.note = f"{damage} after {self.count} frames ({self.seconds:.2f} s)"


def shots_of(path: Path, fps: float) -> Shots:
    """Return the shots of any kind of clip; `fps` is that of a folder of pictures, which knows no times."""
    if path.is_dir():
        return Shots(folder_shots(path, fps))
    if not path.is_file():
        raise ClipError("not a file that can be read")
    if path.stat().st_size == 0:
        raise ClipError("empty, 0 bytes")
    return Shots(animation_shots(path) if path.suffix.lower() in ANIMATED else video_shots(path))


def sample(shots: Shots, fps: float, start: float = 0.0) -> Iterator[Image.Image]:
    """Yield the picture that is on screen at `start`, `start` + 1 / `fps`, ... to the end, converting no others."""
    wanted = 0
    for shot, following in pairwise(chain(shots, [None])):
        end = following.time if following else shot.time + shot.duration
        picture = None
        while start + wanted / fps < end - TOLERANCE:
            picture = picture or shot.picture()
            yield picture
            wanted += 1


def video_shots(path: Path) -> Iterator[Shot]:
    """Return the shots of a video, up to its end or to the first damage; a frame without a time follows the one
    before."""
    try:
        # no other protocol, so that a playlist in the guise of a video opens nothing
        container = av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"not a video, or cut off before its index ({error.strerror})") from error
    with container:
        if not container.streams.video:
            raise ClipError("no video in it, only sound or data")
        stream = container.streams.video[0]
        # all cores at once; a worker is one of many and keeps to its own
        stream.thread_type = "AUTO" if multiprocessing.parent_process() is None else "NONE"
        step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        aspect = float(stream.sample_aspect_ratio or 1)
        aspect = aspect if 1 / 4 < aspect < 4 else 1.0  # no camera's pixels; a broken header must not cost gigabytes
        first = last = None
        for frame in intact_frames(container, stream):
            time = frame.time
            if time is None or (last is not None and time <= last):
                time = 0.0 if last is None else last + step
            first, last = time if first is None else first, time
            stay = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            yield Shot(time - first, stay, upright_size(frame, aspect), partial(upright, frame, aspect))


def intact_frames(container, stream) -> Iterator[av.VideoFrame]:
    """Decode until the end; raise Damage where a frame is broken: those after it are built on it."""
    good = False
    try:
        for frame in container.decode(stream):
            if not frame.is_corrupt:
                good = True
                yield frame
            elif good:  # before the first good one: a recording cut between key frames
                raise Damage("damaged or cut off")
    except av.FFmpegError as error:
        raise Damage("damaged or cut off") from error


def upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if round(frame.rotation / 90) % 2 else (width, height)


def upright(frame: av.VideoFrame, aspect: float) -> Image.Image:
    """Return a frame as RGB with square pixels, turned as its display matrix says (which FFmpeg leaves to the
    player)."""
    picture = frame.to_image()
    if aspect != 1:
        picture = picture.resize((max(1, round(frame.width * aspect)), frame.height), Image.Resampling.BICUBIC)
    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation / 90) % 4)
    return picture if turn is None else picture.transpose(turn)


def animation_shots(path: Path) -> Iterator[Shot]:
    """Return the shots of a GIF, WebP, APNG or AVIF; transparent pixels are white."""
    with open_picture(path) as image:
        time = 0.0
        for number in count():
            try:
                image.seek(number)
                picture = opaque(image)
            except EOFError:
                return
            except UNREADABLE as error:
                raise Damage("damaged or cut off") from error
            stay = image.info.get("duration", 0) / 1000
            stay = stay if stay >= 0.02 else 0.1  # as browsers show it
            yield Shot(time, stay, picture.size, picture.copy)
            time += stay


def folder_shots(folder: Path, fps: float) -> Iterator[Shot]:
    """Return the shots of a folder of numbered pictures, one every 1 / `fps` seconds."""
    files = picture_files(folder)
    if not files:
        raise ClipError("a folder without clips or pictures")
    for number, path in enumerate(files):
        picture = load_still(path)
        yield Shot(number / fps, 1 / fps, picture.size, picture.copy)


def picture_files(folder: Path) -> list[Path]:
    """Return the numbered pictures of a folder in natural order; none where the folder holds other clips or folders."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix.lower() not in BESIDE]
    if not all(path.suffix.lower() in STILLS and re.search(r"\d", path.stem) and path.is_file() for path in files):
        return []
    files.sort(key=lambda path: natural_key(path.name))
    return [] if files and is_animated(files[0]) else files


def natural_key(name: str) -> list:
    """Sort "clip 10" after "clip 9"."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def is_animated(path: Path) -> bool:
    """Tell whether a picture moves by itself; one that cannot be opened does not."""
    try:
        with open_picture(path) as image:
            return getattr(image, "is_animated", False)
    except ClipError:
        return False


def open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UNREADABLE as error:
        raise ClipError(f"{path.name} cannot be read as a picture") from error


def load_still(path: Path) -> Image.Image:
    with open_picture(path) as image:
        try:
            return opaque(ImageOps.exif_transpose(image))
        except UNREADABLE as error:
            raise ClipError(f"{path.name} is damaged or cut off") from error


def opaque(image: Image.Image) -> Image.Image:
    """Return the picture as RGB, its transparent pixels white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


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
