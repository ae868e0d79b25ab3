"""`python -m trainer check`: which clips training would use, what it would see of them, and why others cannot be."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

import torch

from ...networks.shown import shown
from ..base.auto import resolve_base
from ..base.comfyui import find_comfyuis
from ..base.features import feature_model
from ..base.load import load_base
from ..base.tokenizer import clip_tokenizer
from ..clips.batches import TrainingClip
from ..clips.factors import Factors, factors_of, spread, told, warn_of_spread
from ..clips.find import camera_of, samples_of
from ..clips.inspect import ClipReport, inspect_clips, table, usable_clips, write_sheet
from ..clips.shards import opened
from ..clips.source import ClipFormat, Source
from ..clips.words import remark_on
from ..options import CheckOptions, FewShotOptions
from ..run.training_set import Encoder


def check(options: CheckOptions) -> None:
    """Print a table of the first clips of a set, with their factors where there is a base to measure them on, and write
    a contact sheet."""
    form, camera = ClipFormat(options.fps, options.frames, options.size), camera_of(options, options.frames)
    samples = islice(samples_of(options.videos, options.caption, camera), options.first)
    reports = inspect_clips(samples, form, partial(remark_on, tokenizer=clip_tokenizer()))
    print(table(reports))
    if len(reports) == options.first:
        print(f"These are the first {options.first} of the set; --first looks at more.")
    print(size_of_run(reports, form))
    options.output.mkdir(parents=True, exist_ok=True)
    sheet = options.output / "clips.png"
    write_sheet(reports, sheet)
    print(f"what training sees of them: {sheet}")
    good = usable_clips(reports, options.skip_bad)
    if options.base:
        base = resolve_base(options.base, find_comfyuis())
        print_factors(good, measured(good, base, options.features, form, options.cache))


def measured(sources: list[Source], base_path: Path, features: Path, form: ClipFormat, cache: Path) -> list[Factors]:
    """Measure the first frames of every clip, on latents of the base's autoencoder and features of `features`."""
    look, base = feature_model(features), load_base(base_path)
    encoder = Encoder(base, form.fps, form.size, cache, torch.device("cpu"), look)
    factors = []
    for source in sources:
        with opened(source) as found:
            seen = encoder.features_of(found) if look else None
            clip = TrainingClip(source.name, source.caption, encoder.latents_of(found), torch.empty(0), seen)
        factors.append(factors_of(clip, form.frames))
    return factors


def print_factors(sources: list[Source], factors: list[Factors]) -> None:
    """Print HiGen's factors of each clip, and how they vary: what the dials of `decouple` can learn from them."""
    names = [shown(source.name) for source in sources]
    width = max(map(len, names))
    for name, clip in zip(names, factors):
        print(f"{name:{width}}  motion factor {clip.motion:6.0f}  appearance factor {clip.appearance:.3f}")
    ranges = spread(factors)
    print(f"all: {told(ranges)}")
    warn_of_spread(ranges)


def size_of_run(reports: list[ClipReport], form: ClipFormat) -> str:
    """Say what a run on the usable clips would learn from, and how often `fewshot` would show each of them."""
    counts = [report.count for report in reports if not report.problem]
    steps, windows = FewShotOptions.model_fields["steps"].default, sum(n - form.frames + 1 for n in counts)
    width, height = form.size
    return (
        f"{len(counts)} clips, {sum(counts)} frames at {form.fps:g} fps: {windows} windows of {form.frames}"
        f" frames of {width}x{height}, in latents {form.frames} x 4 x {height // 8} x {width // 8}\n"
        f"fewshot's {steps} steps of one clip each show a clip {steps / max(1, len(counts)):.0f} times"
    )
