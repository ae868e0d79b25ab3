"""Line plots as IMAGEs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, BELOW = 72, 20, 48  # room for what is written beside the curve
LINE = 18  # height of a line of text


def line_plot(values: Sequence[float], title: str, across: str, up: str) -> Tensor:
    """Draw a curve over 0, 1, 2, … as an IMAGE, (1, 320, 640, 3); one value alone is a dot, none leave the axes.

    Args:
        values: 0 or more, finite.
        title: written above, one line or several.
        across, up: what the axes are.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    top = LINE * (title.count("\n") + 3)
    highest, last = round_up(max(values, default=0)), max(len(values) - 1, 1)

    def x(place):
        return LEFT + (WIDTH - LEFT - RIGHT) * place / last

    def y(value):
        return HEIGHT - BELOW - (HEIGHT - BELOW - top) * value / highest

    draw.multiline_text((LEFT, 8), title, "black", font)
    draw.text((LEFT, top - LINE), up, "dimgray", font)
    draw.text((WIDTH - RIGHT, HEIGHT - 8), across, "dimgray", font, anchor="rs")
    for value in (0, highest / 2, highest):
        draw.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], "lightgray")
        draw.text((LEFT - 8, y(value)), f"{value:.3g}", "dimgray", font, anchor="rm")
    for place in range(0, last + 1, math.ceil(last / 10)):
        draw.text((x(place), HEIGHT - BELOW + 6), str(place), "dimgray", font, anchor="mt")
    points = [(x(place), y(value)) for place, value in enumerate(values)]
    draw.line(points, "royalblue", 2)
    for across_, up_ in points:
        draw.ellipse([across_ - 3, up_ - 3, across_ + 3, up_ + 3], "royalblue")
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]


def round_up(value: float) -> float:
    """Round up to 1, 2, 5, 10, 20, 50, …, or of these divided by tens; 1 for 0."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 2, 5, 10) if value <= step * unit * (1 + 1e-6))
