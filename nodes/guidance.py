"""The node that asks a clip for so much motion, and for so much change of its look: HiGen's two dials."""

from __future__ import annotations

from functools import partial

from ..samplers.factors import MOST_MOTION
from .asks import GUIDANCE as NODE
from .asks import asking
from .compat import io, schema, ui, where_known
from .node import Node
from .settings import KEY

ASKS = {"motion and appearance": ("motion", "look"), "motion": ("motion",), "appearance": ("look",)}
"""What an option sets, by the names of `asks.Asks`."""


def with_guidance(model, asked: dict, cfg: bool = False):
    """Return a clone of MODEL that is asked for motion, for change of look, or for both.

    Args:
        asked: "motion", "look" or both.
        cfg: the unconditional branch is not asked.

    Raises:
        ValueError: no motion file of MODEL takes one of them.
    """
    switches = {f"{name}_cfg": cfg for name in asked}
    return asking(model, KEY, NODE, ", or set asks to what it has", **asked, **switches)


def _optional(make, name: str, tooltip: str, **options):
    return where_known(make, name, optional=True, tooltip=tooltip, **options)


def _dials() -> list:
    return [
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
    ]


def _curves_and_reference() -> list:
    """Return what can take the place of the numbers."""
    return [
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
    ]


class MotionAppearanceGuidance(Node):
    """Node that sets how much a clip moves, and how much its look changes."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMotionAppearanceGuidance",
            display_name=NODE,
            category="stillmotion/higen",
            description="Two dials, how much a clip moves and how far its look changes: numbers, keyframes, or"
            " measured on a clip.",
            search="higen, motion strength, motion amount, motion scale, motion bucket",
            inputs=[*_dials(), *_curves_and_reference()],
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
        from . import dials  # here, for it would slow down ComfyUI's start

        latents = None if reference_latent is None else reference_latent["samples"]
        clip = dials.Reference(reference, latents, vae, clip_vision, dials.norm_of(model))
        making = {
            "motion": partial(dials.motion_asked, motion_factor, motion_keyframes, clip, motion_scale),
            "look": partial(dials.look_asked, appearance_factor, appearance_keyframes, clip, appearance_scale),
        }
        asked = {name: making[name]() for name in ASKS[asks]}
        model = with_guidance(model, asked, motion_cfg)
        dials.warn_of_features(model, asked.get("look"), clip_vision)
        curves = dials.curves_of(asked, dials.shown_frames(model))
        lines = {name: dials.told(name, curve, dials.trained_on(model, name)) for name, curve in curves.items()}
        plot, numbers = dials.plots_of(curves, lines), "\n".join(lines.values())
        shown = ui.PreviewImage(plot, cls=cls).as_dict() | ui.PreviewText(numbers).as_dict()
        return io.NodeOutput(model, plot, numbers, ui=shown)
