"""Pictures of measured clips: frames, frame differences and x-t slice of each; motion against warping error of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...samplers.factors import x_t_slice
from .pictures import MARGIN, TILE, draw_row, label_font

CURVE = 220  # width of a curve in pixels
COLOURS = "royalblue", "darkorange", "seagreen", "crimson", "purple", "saddlebrown"
SIDE, EDGE = 520, 60  # of the scatter plot, in pixels, and room for what is written beside it


def clip_row(label: str, frames: np.ndarray, curve: Sequence[float]) -> Image.Image:
    """Draw a clip: its label, four frames, its frame-difference curve, and the middle row of every frame, time running
    down.

    Args:
        frames: uint8 (frames, height, width, 3), few enough to be in memory.
        curve: of all the clip.
    """
    row = draw_row(label, frames, 4)
    slice_ = Image.fromarray(x_t_slice(torch.from_numpy(frames)).numpy()).resize((TILE * 3 // 2, TILE))
    whole = Image.new("RGB", (row.width + CURVE + slice_.width + 2 * MARGIN, row.height), "white")
    whole.paste(row, (0, 0))
    whole.paste(curve_picture(curve), (row.width, 0))
    whole.paste(slice_, (row.width + CURVE + MARGIN, 0))
    return whole


def curve_picture(curve: Sequence[float]) -> Image.Image:
    """Draw a curve from nought to its highest point, which is written beside it."""
    picture = Image.new("RGB", (CURVE, TILE), "white")
    draw, highest = ImageDraw.Draw(picture), max(curve, default=0.0)
    left, top, right, bottom = MARGIN, 18, CURVE - MARGIN, TILE - MARGIN
    draw.line([(left, bottom), (right, bottom)], "lightgray")
    points = [
        (left + (right - left) * (place + 0.5) / len(curve), bottom - (bottom - top) * value / (highest or 1))
        for place, value in enumerate(curve)
    ]
    draw.line(points, COLOURS[0], 2)
    draw.text((left, 1), f"frame difference, to {highest:.2g}", "dimgray", label_font())
    return picture


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def write_scatter(sets: Mapping[str, Sequence[tuple[float, float]]], path: Path, across: str, up: str) -> None:
    """Write a plot of a dot for each clip, both axes logarithmic; numbers of 0 or nan stand on the axis, hollow.

    Args:
        sets: (across, up) of each clip, by the names of sets.
    """
    picture = Image.new("RGB", (SIDE + 2 * EDGE, SIDE + 2 * EDGE), "white")
    draw, font = ImageDraw.Draw(picture), label_font()
    columns = list(zip(*(pair for pairs in sets.values() for pair in pairs)))
    (left, right), (low, high) = (decades(column) for column in columns)
    draw.rectangle([EDGE, EDGE, EDGE + SIDE, EDGE + SIDE], outline="gray")
    for power in range(left, right + 1):
        x = EDGE + SIDE * (power - left) / (right - left)
        draw.text((x, EDGE + SIDE + 6), f"{10.0**power:g}", "dimgray", font, anchor="mt")
    for power in range(low, high + 1):
        y = EDGE + SIDE - SIDE * (power - low) / (high - low)
        draw.text((EDGE - 6, y), f"{10.0**power:g}", "dimgray", font, anchor="rm")
    draw.text((EDGE + SIDE, SIDE + 2 * EDGE - 14), across, "black", font, anchor="rs")
    draw.text((EDGE, EDGE - 8), up, "black", font, anchor="ls")
    for number, (name, pairs) in enumerate(sets.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.text((EDGE + 8, EDGE + 6 + 18 * number), name, colour, font)
        for pair in pairs:
            x, y = (place(value, *ends) for value, ends in zip(pair, ((left, right), (low, high))))
            dot = [EDGE + SIDE * x - 4, EDGE + SIDE * (1 - y) - 4, EDGE + SIDE * x + 4, EDGE + SIDE * (1 - y) + 4]
            draw.ellipse(dot, colour if all(value > 0 for value in pair) else None, colour)
    picture.save(path)


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten that all positive values lie between."""
    known = [math.log10(value) for value in values if value > 0]
    low, high = (math.floor(min(known)), math.ceil(max(known))) if known else (-1, 0)
    return low, max(high, low + 1)


def place(value: float, low: int, high: int) -> float:
    return (math.log10(value) - low) / (high - low) if value > 0 else 0.0
