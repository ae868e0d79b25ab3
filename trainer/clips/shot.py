"""One picture of a clip, and what can be wrong with a clip."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


class ClipError(ValueError):
    """A clip that cannot be used; the message says why, and leaves the clip's name to the caller."""


class Damage(Exception):
    """The file breaks off here; the shots before are good."""


@dataclass(frozen=True)
class Shot:
    """One picture: seconds from the first one, seconds it stays, width and height upright, and how to convert it.

    `note`: what was done to make of it what a player shows, or nothing.
    """

    time: float
    duration: float
    size: tuple[int, int]
    picture: Callable[[], Image.Image]
    note: str = ""
