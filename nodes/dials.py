"""What the dials of a MODEL are asked for: as numbers, curves or a clip to measure, and how it is told and drawn.

Loaded when the node runs, and not with it: these classes would slow down ComfyUI's start.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..samplers.factors import MOST_MOTION, Norm, motion_factors
from ..samplers.guidance import Asking, DrawnLook, DrawnMotion, EvenLook, MeasuredLook, MeasuredMotion
from ..samplers.strengths import parse_keyframes
from .asks import GUIDANCE as NODE
from .features import are_other, features_name, look_of, scaled_latents
from .plot import line_plot
from .settings import KEY, asked_frames

log = logging.getLogger(KEY)


class Reference:
    """A clip whose motion and look are measured, when they are asked for and no earlier, motion by the `norm` that the
    motion file's training clips were measured by.

    Raises:
        ValueError: the clip is a single frame, is not there in the form that is needed, or is two clips.
    """

    def __init__(self, images: Tensor | None, latents: Tensor | None, vae, clip_vision, norm: Norm = "l1"):
        self.images, self.latents, self.vae, self.clip_vision, self.norm = images, latents, vae, clip_vision, norm
        frames = [len(rows) for rows in (images, latents) if rows is not None]
        if frames and min(frames) < 2:
            raise ValueError(f"The reference of {NODE} has a single frame, which has no motion; give a clip.")

    def __bool__(self):
        return self.images is not None or self.latents is not None

    def motion(self, scale: float) -> Asking:
        return MeasuredMotion(motion_factors(self._scaled(), self.norm), scale)

    def look(self, scale: float) -> Asking:
        if self.clip_vision is not None and self.images is None:
            raise ValueError(f"The clip_vision of {NODE} reads images: connect the reference clip as IMAGE too.")
        scaled = self._scaled() if self.clip_vision is None else None
        return MeasuredLook(look_of(scaled, self.images, self.clip_vision), scale)

    def _scaled(self) -> Tensor:
        if self.latents is None:
            if self.vae is None:
                raise ValueError(f"{NODE} measures the reference on latents: connect a VAE, or the clip as LATENT.")
            self.latents = self.vae.encode(self.images[..., :3])
        return scaled_latents(self.latents, None if self.images is None else len(self.images))


def norm_of(model) -> Norm:
    """Return how the training clips of a model's motion files were measured: of the first that takes motion."""
    parts = [s.motion.info.config.motion for s in model.get_attachment(KEY) or ()]
    return "l2sq" if next((part.norm for part in parts if part), "").startswith("l2sq") else "l1"


def motion_asked(factor: float, keyframes: str, clip: Reference, scale: float) -> Asking:
    """Return what is asked of motion: by keyframes, else by a reference, else by a number."""
    points = parse_keyframes(keyframes, "motion_keyframes", MOST_MOTION, '"0: 300, 15: 600"')
    if points or not clip:
        return DrawnMotion(points or ((0, factor),))
    return clip.motion(scale)


def look_asked(factor: float, keyframes: str, clip: Reference, scale: float) -> Asking:
    """Return what is asked of the change of look, in the same order."""
    points = parse_keyframes(keyframes, "appearance_keyframes", 1.0, '"0: 0, 15: 1"')
    if points:
        return DrawnLook(points)
    return clip.look(scale) if clip else EvenLook(factor)


def warn_of_features(model, look: Asking | None, clip_vision) -> None:
    """Warn where a motion file was trained on the similarities of other features than those that a look was measured
    by."""
    measured = features_name(clip_vision)
    for s in model.get_attachment(KEY) if isinstance(look, MeasuredLook) else ():
        part = s.motion.info.config.appearance
        if part and are_other(measured, part.features):
            log.warning(
                "%s: appearance is measured by %s features, %s was trained on those of %s, whose factors differ.",
                *(NODE, measured, s.motion.path.name, part.features),
            )


def shown_frames(model) -> int:
    """Return for how many frames the plot is drawn: of a clip of the loader, else of one of the training clips."""
    settings = model.get_attachment(KEY)
    return asked_frames(settings) or max(s.motion.info.frames for s in settings)


def curves_of(asked: dict[str, Asking], frames: int) -> dict[str, list[float]]:
    """Return what is asked, in numbers: motion factors, and how far each frame's look is from the first's."""
    curves = {}
    if motion := asked.get("motion"):
        curves["motion"] = [round(value, 1) for value in motion.for_frames(frames).tolist()]
    if look := asked.get("look"):
        curves["appearance"] = [round(value, 3) for value in (1 - look.for_frames(frames)[0]).tolist()]
    return curves


def told(name: str, curve: list[float], trained: list[float] | None) -> str:
    """Return a line of numbers, in short where all are alike, and the values of the training clips."""
    numbers = f"{curve[0]:g} everywhere" if len(set(curve)) == 1 else " ".join(f"{value:g}" for value in curve)
    text = f"{name}: {numbers}"
    if trained:
        low, middle, high = trained
        text += f"\ntraining clips: half below {middle:.3g}, nine of ten from {low:.3g} to {high:.3g}"
    return text


def trained_on(model, name: str) -> list[float] | None:
    """Return the 5th, 50th and 95th percentile of a factor over the training clips of the first file that says."""
    known = (s.motion.info.factors.get(name) for s in model.get_attachment(KEY))
    return next(filter(None, known), None)


def plots_of(curves: dict[str, list[float]], lines: dict[str, str]) -> Tensor:
    """Draw a plot for each dial, one below the other."""
    up = {"motion": "motion factor", "appearance": "1 - likeness to the first frame"}
    plots = [line_plot(curve, titled(lines[name]), "frame", up[name]) for name, curve in curves.items()]
    return torch.cat(plots, dim=1)


def titled(line: str) -> str:
    """Shorten the lines of a title to what fits above a plot."""
    return "\n".join(part if len(part) <= 80 else f"{part[:77]}..." for part in line.split("\n"))
