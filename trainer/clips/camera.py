"""Clips made with a camera that moves over pictures, or over the frames of clips."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...samplers.camera import Way, area_of, camera_way, seen_at
from .decoding import sample, shots_of
from .kinds import STILLS
from .shot import Shot
from .source import Camera
from .stills import is_animated, still_shot

ENLARGED = 1.1
"""From so many times on it is remarked that a picture has fewer pixels than its closest crop needs."""


def camera_shots(path: Path, camera: Camera, fps: float, size: tuple[int, int]) -> Iterator[Shot]:
    """Return the shots of a clip that a camera makes of a picture, or of the first frames of a clip at `fps`.

    Args:
        size: (width, height) of the clip.
    """
    way = camera_way(camera.motion, camera.frames, size, camera.reach)
    last, area, notes = None, torch.empty(0), ""
    for number, (picture, note) in enumerate(pictures_of(path, camera.frames, fps)):
        if picture is not last:
            last, (area, enlarged) = picture, area_of(to_tensor(picture), way)
            notes = ", ".join(filter(None, (note, f"enlarged {enlarged:.1f} times" if enlarged >= ENLARGED else "")))
        yield Shot(number / fps, 1 / fps, size, partial(view, area, way, number, size), notes)


def pictures_of(path: Path, frames: int, fps: float) -> Iterator[tuple[Image.Image, str]]:
    """Return what is before the camera in each frame, and a note on it: one picture all the time, or those of a clip,
    as many as it has."""
    if path.suffix.lower() in STILLS and not is_animated(path):
        return repeat(still_shot(path), frames)
    shots = shots_of(path, fps)
    return ((picture, shots.note) for picture in islice(sample(shots, fps), frames))


def to_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as (3, height, width) in 0 to 1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def view(area: Tensor, way: Way, frame: int, size: tuple[int, int]) -> Image.Image:
    seen = seen_at(area, way, frame, size)
    return Image.fromarray((255 * seen).round().byte().permute(1, 2, 0).numpy())
