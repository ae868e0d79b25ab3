"""Pictures of clips to look at: contact sheets, animated WebP, MP4; and how much a clip moves.

Frames are uint8 arrays (frames, height, width, 3) throughout.
"""

import textwrap
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...samplers.flow import mean_motion, view

TILE = 128  # height of a frame in a contact sheet
MARGIN = 4
LABEL = 200  # width of the labels' column
LETTER = 13  # size of the labels' font, in pixels
FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "arial.ttf")


@dataclass(frozen=True)
class Motion:
    """The amount of motion from frame to frame of a clip.

    `flow` is the mean length of the optical flow, in percent of the frame's longer side; `difference` the mean
    absolute difference of grey levels, 0 to 255.
    """

    flow: float
    difference: float


def motion_amount(frames: np.ndarray) -> Motion:
    """Measure motion between neighbouring frames."""
    meter = MotionMeter()
    meter.add(frames)
    return meter.motion()


class MotionMeter:
    """Measures motion between neighbouring frames that come a few at a time, and keeps the last of them alone."""

    def __init__(self):
        self.last, self.flows, self.differences = None, [], []

    def add(self, frames: np.ndarray) -> None:
        for seen in map(view, frames):
            if self.last is not None:
                self.flows.append(mean_motion(self.last, seen))
                self.differences.append(cv2.absdiff(self.last.grey, seen.grey).mean())
            self.last = seen

    def motion(self) -> Motion:
        if not self.flows:
            return Motion(0.0, 0.0)
        return Motion(float(np.mean(self.flows)), float(np.mean(self.differences)))


def contact_sheet(rows: list[tuple[str, np.ndarray | None]], path: Path, columns: int = 8) -> None:
    """Write a PNG with a row for each clip: its label, then evenly spaced frames from the first to the last.

    Args:
        rows: label and frames; without frames the label takes the whole row, for what cannot be shown.
        columns: frames shown of each clip, at most.
    """
    if not rows:
        raise ValueError(f"there are no rows to draw on {path}")
    drawn = [draw_row(label, frames, columns) for label, frames in rows]
    sheet = Image.new("RGB", (max(row.width for row in drawn), sum(row.height for row in drawn)), "white")
    top = 0
    for row in drawn:
        sheet.paste(row.getpixel((0, 0)), (0, top, sheet.width, top + row.height))
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path)


def draw_row(label: str, frames: np.ndarray | None, columns: int) -> Image.Image:
    tiles = [] if frames is None else [tile(frame) for frame in evenly_spaced(frames, columns)]
    text = wrapped(label, LABEL if tiles else LABEL + columns * TILE)
    height = max([TILE] * bool(tiles) + [(LETTER + 3) * (text.count("\n") + 1)])
    row = Image.new("RGB", (LABEL + sum(t.width + MARGIN for t in tiles), height + MARGIN), "white")
    if not tiles:
        row = Image.new("RGB", (LABEL + columns * TILE, height + MARGIN), "mistyrose")
    ImageDraw.Draw(row).multiline_text((MARGIN, 1), text, "black", label_font(), spacing=3)
    left = LABEL
    for picture in tiles:
        row.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return row


def label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of the system that knows most scripts, or Pillow's own, which knows English."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, LETTER)
        except OSError:
            continue
    return ImageFont.load_default(LETTER)


def wrapped(text: str, width: int) -> str:
    letters = int(width / (LETTER * 0.55))
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in text.splitlines())


def tile(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame)
    width = max(1, round(picture.width * TILE / picture.height))
    smooth = Image.Resampling.BICUBIC if picture.height > TILE else Image.Resampling.NEAREST
    return picture.resize((width, TILE), smooth)


def evenly_spaced(frames: np.ndarray, count: int) -> np.ndarray:
    """Choose at most `count` frames, the first and the last among them."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]


def write_webp(frames: np.ndarray, path: Path, fps: float) -> None:
    """Write an animated WebP that repeats for ever."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    ends = [round(1000 * number / fps) for number in range(len(frames) + 1)]  # whole ms that do not add up an error
    stays = [after - before for before, after in zip(ends, ends[1:])]
    first.save(path, save_all=True, append_images=others, duration=stays, loop=0, quality=90, method=4)


def write_mp4(frames: np.ndarray, path: Path, fps: float) -> None:
    """Write H.264 in MP4; an odd width or height, which H.264 cannot have, gets one more pixel at the edge."""
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
