"""The node that samples a clip on context windows."""

from __future__ import annotations

from ..samplers.windows import FUSES
from .compat import io, schema
from .node import Node
from .windowing import sampled_on_windows


def window_inputs():
    """Return the inputs window, overlap and fuse, as every node that samples on windows has them."""
    return [
        io.Int.Input(
            "window",
            default=16,
            min=1,
            max=4096,
            tooltip="Context length: frames of the latents that the model sees at a time, as many as it was trained on."
            " A clip that is no longer is sampled whole.",
        ),
        io.Int.Input(
            "overlap",
            default=4,
            min=0,
            max=4095,
            tooltip="Context overlap: frames that a window shares with the one before, fewer than it has. Paper: 2. 0:"
            " a visible cut from each window to the next.",
        ),
        io.Combo.Input(
            "fuse",
            options=list(FUSES),
            tooltip="Weights of windows where they overlap. pyramid: the larger, the nearer the window's middle;"
            " trapezoid: a linear change from one to the next; flat: the plain mean, as in the paper.",
        ),
    ]


def loop_input():
    """Return the input loop, which came later than the others: graphs without it open as they were."""
    return io.Boolean.Input(
        "loop",
        default=False,
        optional=True,
        tooltip="The last frame leads into the first, for clips that are played over and over: every step begins with"
        " another frame, so that no cut stays in one place.",
    )


class TemporalWindows(Node):
    """Node that samples a clip too long for the model, or for the VRAM, on overlapping context windows."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionTemporalWindows",
            display_name="Temporal Windows",
            category="stillmotion/sampling",
            description="Samples clips of any length on overlapping context windows; VRAM depends on the window, not"
            " on the clip.",
            search="context window, context options, context length, long video, sliding window, infinite length,"
            " looped uniform, loop, out of memory, vram",
            inputs=[
                io.Model.Input("model", tooltip="An image model with a motion file on it, or a video model."),
                *window_inputs(),
                loop_input(),
            ],
            outputs=[io.Model.Output("windowed_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model, window, overlap, fuse, loop=False) -> io.NodeOutput:
        return io.NodeOutput(sampled_on_windows(model, window, overlap, fuse, loop))
