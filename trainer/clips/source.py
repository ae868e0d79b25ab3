"""A clip as found, and the form in which training sees it."""

from dataclasses import dataclass
from pathlib import Path

from ...samplers.camera import CameraMotion

NO_CAPTION = "no caption"
"""How the problem begins of a clip that lacks one."""


@dataclass(frozen=True)
class Camera:
    """How a camera moves over a picture, or over the first frames of a clip, see `samplers.camera.camera_way`."""

    motion: CameraMotion
    frames: int
    reach: float


@dataclass(frozen=True)
class Source:
    """A clip as found, not yet decoded; `problem` says why it cannot be used, where that is known already.

    `missing`: there are only words of it, and nothing to decode; nothing that they name is ever opened. `camera`: what
    makes a clip of it.
    """

    path: Path
    name: str
    caption: str = ""
    problem: str | None = None
    missing: bool = False
    camera: Camera | None = None


@dataclass(frozen=True)
class ClipFormat:
    """The form in which training sees every clip: `fps`, a number of `frames`, `size` (width, height) in pixels."""

    fps: float
    frames: int
    size: tuple[int, int]


def is_text(name: str) -> bool:
    """Tell whether a name can be written as UTF-8: names from the disk may be bytes of any encoding, JSON can spell
    halves of letters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
