"""The node that asks a clip for so much motion, and for so much change of its look: HiGen's two dials."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from ..samplers.factors import motion_factors
from ..samplers.guidance import (
    MOST_MOTION,
    Asking,
    DrawnLook,
    DrawnMotion,
    EvenLook,
    MeasuredLook,
    MeasuredMotion,
)
from ..samplers.strengths import parse_keyframes
from .asks import asking
from .attach import KEY, asked_frames
from .compat import io, ui, where_known
from .features import are_other, features_name, look_of, scaled_latents
from .plot import line_plot

NODE = "Motion/Appearance Guidance"
ASKS = {"motion and appearance": ("motion", "look"), "motion": ("motion",), "appearance": ("look",)}
"""What an option sets, by the names of `asks.Asks`."""

log = logging.getLogger(KEY)


class Reference:
    """A clip whose motion and look are measured, when they are asked for and no earlier.

    Raises:
        ValueError: the clip is a single frame, is not there in the form that is needed, or is two clips.
    """

    def __init__(self, images: Tensor | None, latents: Tensor | None, vae, clip_vision):
        self.images, self.latents, self.vae, self.clip_vision = images, latents, vae, clip_vision
        frames = [len(rows) for rows in (images, latents) if rows is not None]
        if frames and min(frames) < 2:
            raise ValueError(f"The reference of {NODE} has a single frame, which has no motion; give a clip.")

    def __bool__(self):
        return self.images is not None or self.latents is not None

    def motion(self, scale: float) -> Asking:
        return MeasuredMotion(motion_factors(self._scaled()), scale)

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


def with_guidance(model, asked: dict[str, Asking], cfg: bool = False):
    """Return a clone of MODEL that is asked for motion, for change of look, or for both.

    Args:
        asked: "motion", "look" or both.
        cfg: the unconditional branch is not asked.

    Raises:
        ValueError: no motion file of MODEL takes one of them.
    """
    switches = {f"{name}_cfg": cfg for name in asked}
    return asking(model, KEY, NODE, ", or set asks to what it has", **asked, **switches)


def warn_of_features(model, clip_vision) -> None:
    """Warn where a motion file was trained on the similarities of other features than those that are measured."""
    measured = features_name(clip_vision)
    for s in model.get_attachment(KEY) or ():
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
    return next((values for values in known if values and len(values) == 3), None)


def plots_of(curves: dict[str, list[float]], lines: dict[str, str]) -> Tensor:
    """Draw a plot for each dial, one below the other."""
    up = {"motion": "motion factor", "appearance": "1 - likeness to the first frame"}
    plots = [line_plot(curve, titled(lines[name]), "frame", up[name]) for name, curve in curves.items()]
    return torch.cat(plots, dim=1)


def titled(line: str) -> str:
    """Shorten the lines of a title to what fits above a plot."""
    return "\n".join(part if len(part) <= 80 else f"{part[:77]}..." for part in line.split("\n"))


def _optional(make, name: str, tooltip: str, **options):
    return where_known(make, name, optional=True, tooltip=tooltip, **options)


class MotionAppearanceGuidance(io.ComfyNode):
    """Node that sets how much a clip moves, and how much its look changes."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StillmotionMotionAppearanceGuidance",
            display_name=NODE,
            category="stillmotion/higen",
            description="Two dials: how much the clip moves, and how far its look changes from the first frame to the"
            " last. Each is a number, a curve of keyframes, or measured on a clip.",
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion file that `python -m trainer decouple` made."),
                io.Float.Input(
                    "motion_factor",
                    default=500.0,
                    min=0.0,
                    max=MOST_MOTION,
                    step=10.0,
                    tooltip="How far each frame is from the next, as Measure Motion gives it. Paper: 300 calm to 600"
                    " lively. The text output has the values of the clips that the file was trained on.",
                ),
                io.Float.Input(
                    "appearance_factor",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the last frame's look is from the first's: 0 the same, 1 all other.",
                ),
                io.Combo.Input(
                    "asks",
                    options=list(ASKS),
                    tooltip="Which dials this node sets; the other stays as another node set it, or free.",
                ),
                io.Boolean.Input(
                    "motion_cfg",
                    default=False,
                    tooltip="Leave the dials out of the negative prompt's branch, so that CFG amplifies them.",
                ),
                _optional(
                    io.String.Input,
                    "motion_keyframes",
                    "Motion factors at some frames, linear between: 0: 300, 15: 600 for example. Empty: motion_factor,"
                    " or the reference.",
                    default="",
                ),
                _optional(
                    io.String.Input,
                    "appearance_keyframes",
                    "Where some frames are on the way from one look, 0, to another, 1: 0: 0, 8: 0.2, 15: 1 for example."
                    " Empty: appearance_factor, or the reference.",
                    default="",
                ),
                io.Image.Input("reference", optional=True, tooltip="A clip whose factors are measured and asked for."),
                io.Latent.Input("reference_latent", optional=True, tooltip="The same clip as latents."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the reference, where it is no latent."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image model that the motion file's appearance was measured by: DINOv2 or CLIP. Not"
                    " connected: features of the latents.",
                ),
                _optional(
                    io.Float.Input,
                    "motion_scale",
                    "Factor of the reference's motion.",
                    **{"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05},
                ),
                _optional(
                    io.Float.Input,
                    "appearance_scale",
                    "Factor of the reference's change of look.",
                    **{"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05},
                ),
            ],
            outputs=[
                io.Model.Output("guided_model", display_name="model"),
                io.Image.Output("plot", tooltip="What is asked of each frame."),
                io.String.Output("numbers", tooltip="The same in numbers, with the values of the training clips."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        motion_factor,
        appearance_factor,
        asks,
        motion_cfg,
        motion_keyframes="",
        appearance_keyframes="",
        reference=None,
        reference_latent=None,
        vae=None,
        clip_vision=None,
        motion_scale=1.0,
        appearance_scale=1.0,
    ) -> io.NodeOutput:
        latents = None if reference_latent is None else reference_latent["samples"]
        clip = Reference(reference, latents, vae, clip_vision)
        making = {
            "motion": partial(motion_asked, motion_factor, motion_keyframes, clip, motion_scale),
            "look": partial(look_asked, appearance_factor, appearance_keyframes, clip, appearance_scale),
        }
        asked = {name: making[name]() for name in ASKS[asks]}
        model = with_guidance(model, asked, motion_cfg)
        if isinstance(asked.get("look"), MeasuredLook):
            warn_of_features(model, clip_vision)
        curves = curves_of(asked, shown_frames(model))
        lines = {name: told(name, curve, trained_on(model, name)) for name, curve in curves.items()}
        plot, numbers = plots_of(curves, lines), "\n".join(lines.values())
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(numbers).as_dict()
        return io.NodeOutput(model, plot, numbers, ui=shown)
