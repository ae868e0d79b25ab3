"""Nodes that show how a clip moves: as numbers, as a curve, and as an x-t slice."""

from __future__ import annotations

import numpy as np
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..samplers.factors import (
    appearance_factor,
    frame_difference_curve,
    motion_factors,
    seam,
    x_t_slice,
    y_t_slice,
)
from .compat import io, schema, ui
from .features import features_name, look_of, scaled_latents
from .node import Node
from .plot import line_plot

SMALLEST = 16
"""Pixels of a side from which on the optical flow works; below it OpenCV ends the whole process on some shapes."""

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


def mean_flow(images: Tensor) -> float:
    """Return the mean length of the optical flow from frame to frame, in pixels of these frames; 0 for a single one.

    Flow by DIS (Kroeger et al. 2016, arXiv 1603.03590).

    Raises:
        ValueError: OpenCV is not installed, or the frames are too small.
    """
    height, width = images.shape[1:3]
    if min(height, width) < SMALLEST:
        raise ValueError(f"The frames have {width} x {height} pixels; the optical flow needs {SMALLEST} x {SMALLEST}.")
    try:
        import cv2
    except ImportError:
        raise ValueError(
            "Measure Motion needs OpenCV, which ComfyUI does not bring: run `pip install opencv-python-headless` in"
            " ComfyUI's environment and restart it."
        ) from None
    frames = (images[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    lengths = [np.linalg.norm(dis.calc(*pair, None), axis=-1).mean() for pair in zip(grey, grey[1:])]
    return float(np.mean(lengths)) if lengths else 0.0


def mean_motion_factor(scaled: Tensor) -> float:
    """Return the mean motion factor of a clip's scaled latents; 0 for a single frame."""
    factors = motion_factors(scaled)
    return factors.mean().item() if len(factors) else 0.0


def summary(factor: float | None, flow: float, curve: Tensor, look: float | None = None, features: str = "") -> str:
    """Return what was measured, in one line to three."""
    told = "not measured" if factor is None else f"{factor:.0f}"
    lines = [f"motion factor {told}, flow {flow:.2f} pixels per frame"]
    if look is not None:
        lines.append(f"appearance factor {look:.3f} ({features} features)")
    if len(curve) > 2 and curve.median() > 0:
        lines.append(f"largest jump: {seam(curve):.1f} times the median, after frame {curve.argmax().item()}")
    return "\n".join(lines)


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
            description="Measures how much a clip moves, and shows where it jumps.",
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
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, vae=None, latent=None, clip_vision=None) -> io.NodeOutput:
        check_frames(images)
        flow, curve = mean_flow(images), frame_difference_curve(images[..., :3])
        if latent is None and vae is not None:
            latent = {"samples": vae.encode(images[..., :3])}
        scaled = None if latent is None else scaled_latents(latent["samples"], len(images))
        factor = None if scaled is None else mean_motion_factor(scaled)
        similarity = None if scaled is None and clip_vision is None else look_of(scaled, images, clip_vision)
        look = None if similarity is None else appearance_factor(similarity).item()
        text = summary(factor, flow, curve, look, features_name(clip_vision))
        plot = line_plot(curve.tolist(), text, "frame", "mean squared difference to the next frame")
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        measured = ExecutionBlocker(UNMEASURED) if factor is None else factor
        looks = [ExecutionBlocker(NO_LOOK)] * 2 if similarity is None else [look, rows_of(similarity)]
        return io.NodeOutput(measured, flow, plot, *looks, ui=shown)


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
