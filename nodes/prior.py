"""The node that gives a clip the picture that it is to be of: HiGen's spatial prior."""

from __future__ import annotations

from torch import Tensor

from .asks import Still, asking
from .compat import io, schema
from .node import Node
from .settings import KEY

NODE = "Spatial Prior"
SIZES = {"refuse": False, "resize the still": True}


def frame_of(latents: Tensor, frame: int) -> Tensor:
    """Return one frame of a LATENT's samples, (1, 4, height, width); -1: the middle one, F // 2, as in training.

    Raises:
        ValueError: these are no latents of Stable Diffusion, or have no such frame.
    """
    if latents.is_nested or latents.ndim != 4 or latents.shape[1] != 4:
        shape = "of several parts" if latents.is_nested else f"{tuple(latents.shape)}"
        raise ValueError(
            f"The latent of {NODE} is {shape}; it takes those of Stable Diffusion, (frames, 4, height, width), as a"
            " KSampler of the image model makes them."
        )
    frames = len(latents)
    if frame >= frames:
        raise ValueError(f"{NODE} is to take frame {frame} of {frames}; give 0 to {frames - 1}, or -1 for the middle.")
    frame = frames // 2 if frame < 0 else frame
    return latents[frame : frame + 1].clone()


def with_prior(model, latents: Tensor, frame: int = -1, strength: float = 1.0, resize: bool = False):
    """Return a clone of MODEL whose clips are of a still; MODEL itself at strength 0.

    Raises:
        ValueError: no motion file of MODEL has a stem for it, or see `frame_of`.
    """
    if strength == 0:
        return model
    scaled = model.get_model_object("latent_format").process_in(frame_of(latents, frame))
    return asking(model, KEY, NODE, still=Still(scaled.float(), strength, resize))


class SpatialPrior(Node):
    """Node that gives a clip the picture that it is to be of."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionSpatialPrior",
            display_name=NODE,
            category="stillmotion/higen",
            description="Makes a clip of a still, which is the ground that every frame stays near and not the first"
            " frame.",
            search="higen, img2vid, image to video, i2v, animate image, svd",
            inputs=[
                io.Model.Input("model", tooltip="A model with a motion file that `python -m trainer decouple` made."),
                io.Latent.Input(
                    "latent",
                    tooltip="The still: what a KSampler of the image model made, or VAE Encode of any picture. It must"
                    " have the size of the clip.",
                ),
                io.Int.Input(
                    "frame",
                    default=-1,
                    min=-1,
                    max=4095,
                    tooltip="Which frame of the latent is the still, where it has several. -1: the middle one.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Factor of what the still adds. 0: no prior, 1: as trained.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    tooltip="Where the clip has another size than the still. refuse: an error with both sizes. resize"
                    " the still: it is cut to the clip's aspect ratio and resized, which blurs it.",
                ),
            ],
            outputs=[io.Model.Output("prior_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model, latent, frame, strength, size) -> io.NodeOutput:
        return io.NodeOutput(with_prior(model, latent["samples"], frame, strength, SIZES[size]))
