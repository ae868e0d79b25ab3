"""The peak VRAM of the parts of an inflation beside the frozen U-Net, for hosts that plan with such figures."""

from __future__ import annotations

from collections.abc import Iterator

from .building import kinds_after
from .config import InflationConfig
from .kinds import BLOCKS
from .mapping import HEAD_WIDTH, HEADS
from .sites import Structure
from .tokens import MOST_LOGITS, PROMPT

PEAKS = {"recurrence": 11, "frame_attention": 7, "resampling": 4, "tokens": 5}
"""How many tensors the size of its activations a part holds at once at its worst, without gradients.

Measured in float32 and float16, and rounded up for the room that a kernel takes for itself;
tests/networks/test_peaks.py measures again. Temporal blocks bring their own (`TemporalBlock.peak`).
"""

MAPPING = 5 * HEADS * HEAD_WIDTH
"""Numbers that the mapping network holds for each pixel of the latents: most are queries, keys and values."""

LOGIT = 12
"""Bytes for each number of attention where frame-wise tokens are: it is there in float32 twice, and as it was."""


def peak_bytes(config: InflationConfig, structure: Structure, pixels: int, bytes_each: int) -> int:
    """Return the most that a part of an inflation holds at once in a forward without gradients.

    Halved frame rates make it no smaller: all frames are there at the finest level, and levels below have so much
    fewer pixels that their parts are the hungriest only where the finest has none.

    Args:
        pixels: of the latents, all frames of all clips and conditions together.
        bytes_each: of the numbers that the U-Net computes with.
    """
    return int(max(_peaks(config, structure, pixels, bytes_each), default=0))


def _peaks(config: InflationConfig, structure: Structure, pixels: int, bytes_each: int) -> Iterator[float]:
    for number, level in enumerate(structure.levels):
        for part in _parts_of(config):
            yield PEAKS[part] * level.width * pixels / 4**number * bytes_each
    for number in config.resampling.levels if config.resampling else ():
        coarser = structure.levels[number + 1].width  # which the frames still have when they are doubled
        yield PEAKS["resampling"] * coarser * pixels / 4**number * bytes_each
    for site in structure.sites():
        for block in (BLOCKS[kind] for kind in kinds_after(site, config.temporal)):
            yield block.peak * block.width_at(site) * pixels / 4**site.level * bytes_each
    if config.mapping:
        yield MAPPING * pixels * bytes_each
    if config.tokens:
        logits = min(MOST_LOGITS, HEADS * PROMPT * pixels)  # Stable Diffusion 1.5 has 8 heads as well
        yield LOGIT * logits + PEAKS["tokens"] * structure.levels[0].width * pixels * bytes_each


def _parts_of(config: InflationConfig) -> Iterator[str]:
    if config.recurrence:
        yield "recurrence"
    if config.frame_attention:
        yield "frame_attention"
