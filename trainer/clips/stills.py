"""Pictures by Pillow: still ones and animated ones, as 8-bit RGB."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .shot import ClipError, Damage, Shot

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "TIFF")
"""What Pillow may open. Left to itself it looks at the bytes alone, and starts Ghostscript for a PostScript file."""

UNREADABLE = (  # what Pillow's readers raise on damaged files
    *(OSError, EOFError, SyntaxError, ValueError, IndexError, RuntimeError, struct.error, MemoryError, TypeError),
    Image.DecompressionBombError,
)


def open_picture(path: Path) -> Image.Image:
    if not path.is_file():  # a pipe would be waited for, for ever
        raise ClipError(f"{path.name} is not a file that can be read")
    try:
        return Image.open(path, formats=[name for name in FORMATS if name in known_formats()])
    except UNREADABLE as error:
        raise ClipError(f"{path.name} cannot be read as a picture") from error


def known_formats() -> set[str]:
    """Return the formats of this build of Pillow: an older one has no AVIF."""
    Image.init()
    return set(Image.OPEN)


def readable(path: Path) -> bool:
    try:
        with open_picture(path):
            return True
    except ClipError:
        return False


def is_animated(path: Path) -> bool:
    """Tell whether a picture moves by itself; one that cannot be opened does not."""
    try:
        with open_picture(path) as image:
            return getattr(image, "is_animated", False)
    except (ClipError, *UNREADABLE):
        return False


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
            except ClipError:
                raise
            except UNREADABLE as error:
                raise Damage("damaged or cut off") from error
            stay = image.info.get("duration", 0) / 1000
            stay = stay if stay >= 0.02 else 0.1  # as browsers show it
            yield Shot(time, stay, picture.size, picture.copy, note_on(image))
            time += stay


def note_on(image: Image.Image) -> str:
    """Say what is lost of a picture on the way to 8-bit RGB."""
    notes = ["16 bit to 8"] if image.mode.startswith("I") else ["float to 8 bit"] if image.mode == "F" else []
    return ", ".join([*notes, *(["transparent pixels made white"] if image.has_transparency_data else [])])


def load_still(path: Path) -> Image.Image:
    return still_shot(path)[0]


def still_shot(path: Path) -> tuple[Image.Image, str]:
    """Return a still picture, upright and opaque, and the note on it."""
    with open_picture(path) as image:
        try:
            return opaque(ImageOps.exif_transpose(image)), note_on(image)
        except ClipError:
            raise
        except UNREADABLE as error:
            raise ClipError(f"{path.name} is damaged or cut off") from error


def opaque(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB, its transparent pixels white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return scaled_to_8_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits, or of numbers from 0 to 1, with 8 bits; Pillow itself cuts off at 255.

    Raises:
        ClipError: its numbers are others, and nothing says which of them is white.
    """
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        raise ClipError(
            f"its numbers reach from {values.min():g} to {values.max():g}; grey pictures of so many bits are read"
            f" from 0, black, to {white:g}, white: save it again as a PNG of 8 or 16 bits"
        )
    return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
