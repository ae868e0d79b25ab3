"""Nodes that show how a clip moves: as numbers, as a curve, and as an x-t slice."""

from __future__ import annotations

from math import isnan

import numpy as np
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..samplers.factors import appearance_factor, motion_factors, x_t_slice, y_t_slice
from ..samplers.measures import ClipMeasures, measure, remarks, told
from .compat import io, schema, ui
from .features import features_name, look_of, scaled_latents
from .node import Node
from .plot import line_plot

UNDEFINED = "This is not defined for the clip: it stands still, or is a single frame, or nothing in it can be followed."
NO_LOOK = "The appearance factor was not measured: connect a CLIP_VISION, a VAE or a LATENT to Measure Motion."
UNMEASURED = "The motion factor was not measured: connect a VAE or a LATENT to Measure Motion."


def check_frames(images: Tensor) -> None:
    """Raise ValueError where an IMAGE holds no frames, no colour channels, or NaN or infinity."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(
            f"The IMAGE is {tuple(images.shape)}; needed are (frames, height, width, channels), 3 channels, or"
            " 4 with alpha. Convert Mask to Image makes such frames of masks."
        )
    if not len(images):
        raise ValueError("The IMAGE holds no frames; connect at least one.")
    if not images.isfinite().all():
        raise ValueError("The frames hold NaN or infinite numbers; a VAE in half precision may have made them.")


def to_bytes(images: Tensor) -> np.ndarray:
    """Return frames as a file has them, uint8 (frames, height, width, 3): numbers of them are those of `evaluate`."""
    return (images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()


def pixels_of(motion: float, images: Tensor) -> float:
    """Return a motion in percent of the longer side in pixels of these frames."""
    return motion * max(images.shape[1:3]) / 100


def mean_motion_factor(scaled: Tensor) -> float:
    """Return the mean motion factor of a clip's scaled latents; 0 for a single frame."""
    factors = motion_factors(scaled)
    return factors.mean().item() if len(factors) else 0.0


def summary(factor: float | None, numbers: ClipMeasures, size: tuple[int, int], look: float | None, features: str):
    """Return what was measured, in a few lines."""
    known = "not measured" if factor is None else f"{factor:.0f}"
    looks = "" if look is None else f", appearance factor {look:.3f} ({features} features)"
    return f"motion factor {known}{looks}\n{told(numbers, size)}"


def defined(value: float) -> float | ExecutionBlocker:
    return ExecutionBlocker(UNDEFINED) if isnan(value) else value


def rows_of(similarity: Tensor) -> str:
    """Return similarities as text, a line for each frame."""
    return "\n".join(" ".join(f"{value:.3f}" for value in row) for row in similarity.tolist())


class MeasureMotion(Node):
    """Node that measures how much a clip moves, and shows where it jumps."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMeasureMotion",
            display_name="Measure Motion",
            category="stillmotion/inspect",
            description="Measures how much a clip moves and how smoothly, what is wrong with it, and where it jumps.",
            search="optical flow, motion score, motion strength, analyse video, frame difference",
            inputs=[
                io.Image.Input("images", tooltip="The frames of one clip. A single frame moves by 0."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="An SD1.5 VAE; it encodes the frames for the motion factor."
                ),
                io.Latent.Input("latent", optional=True, tooltip="The same clip as latents: then nothing is encoded."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Image model that the appearance factor is measured by, DINOv2 or CLIP. Not connected: the"
                    " latents, which tell colours and places alone.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "motion_factor", tooltip="HiGen's motion factor, mean over the clip; 300 to 600: lively."
                ),
                io.Float.Output("mean_flow", tooltip="Mean length of the optical flow, in pixels per frame."),
                io.Image.Output("plot", tooltip="Mean squared difference of neighbouring frames, over the clip."),
                io.Float.Output(
                    "appearance_factor",
                    tooltip="HiGen's appearance factor: how far the last frame's look is from the first's, 0 the same.",
                ),
                io.String.Output(
                    "similarity", tooltip="How like each other all frames are: a line of cosines for each frame."
                ),
                io.Float.Output(
                    "warping_error",
                    tooltip="Mean squared difference of each frame from the one before, along the optical flow, colours"
                    " from 0 to 1. 0 for a still: read it beside the flow.",
                ),
                io.Float.Output(
                    "seam", tooltip="Largest difference of neighbouring frames over the median of all: 1 is even."
                ),
                io.Float.Output(
                    "loop_seam", tooltip="Difference of the last frame to the first, over that median: 1 for a loop."
                ),
                io.String.Output(
                    "remarks", tooltip="What is wrong with the clip, a line for each; empty if nothing is."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, vae=None, latent=None, clip_vision=None) -> io.NodeOutput:
        check_frames(images)
        numbers = measure(to_bytes(images))
        if latent is None and vae is not None:
            latent = {"samples": vae.encode(images[..., :3])}
        scaled = None if latent is None else scaled_latents(latent["samples"], len(images))
        factor = None if scaled is None else mean_motion_factor(scaled)
        similarity = None if scaled is None and clip_vision is None else look_of(scaled, images, clip_vision)
        look = None if similarity is None else appearance_factor(similarity).item()
        text = summary(factor, numbers, (images.shape[2], images.shape[1]), look, features_name(clip_vision))
        plot = line_plot(numbers.differences, text, "frame", "mean squared difference to the next frame")
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        measured = ExecutionBlocker(UNMEASURED) if factor is None else factor
        looks = [ExecutionBlocker(NO_LOOK)] * 2 if similarity is None else [look, rows_of(similarity)]
        smooth = [defined(value) for value in (numbers.warping_error, numbers.seam, numbers.loop)]
        said = "\n".join(remarks(numbers).values())
        return io.NodeOutput(measured, pixels_of(numbers.motion, images), plot, *looks, *smooth, said, ui=shown)


class XTSlice(Node):
    """Node that stacks one line of every frame into an image."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionXTSlice",
            display_name="X-T Slice",
            category="stillmotion/inspect",
            description="Stacks one row or column of every frame: motion draws slanted lines, flicker draws stripes.",
            search="flicker, kymograph, slit scan, temporal consistency, seams",
            inputs=[
                io.Image.Input("images", tooltip="The frames of one clip."),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where the line lies, as a share of the frame: 0 is the top or the left edge.",
                ),
                io.Combo.Input(
                    "axis",
                    options=["row", "column"],
                    tooltip="row: time runs down, for motion sideways. column: time runs to the right.",
                ),
                io.Int.Input(
                    "thickness", default=8, min=1, max=64, tooltip="Pixels that each frame gets in the image."
                ),
            ],
            outputs=[io.Image.Output("slice")],
        )

    @classmethod
    def execute(cls, images, position, axis, thickness) -> io.NodeOutput:
        check_frames(images)
        if axis == "row":
            image = x_t_slice(images, position).repeat_interleave(thickness, dim=0)
        else:
            image = y_t_slice(images, position).repeat_interleave(thickness, dim=1)
        return io.NodeOutput(image[None])
