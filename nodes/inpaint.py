"""The nodes that make a clip around pixels that are given, and that put these back after decoding."""

from __future__ import annotations

from .compat import io, schema
from .node import Node
from .upscale import check_family
from .windowing import looped
from .windows import loop_input

MODES = "image to video", "key frames", "inpaint", "outpaint", "cinemagraph"


def whole_number(id: str, default: int, lowest: int, highest: int, tooltip: str):
    return io.Int.Input(id, default=default, min=lowest, max=highest, tooltip=tooltip)


def frames_input():
    return whole_number("frames", 16, 1, 4096, "Frames of the clip.")


def side_input(side: str, default: int):
    return whole_number(side, default, 0, 8192, f"Pixels to make at the {side}.")


def mode_input():
    """Return the choice of what is known, each with the inputs that it alone needs."""
    strength = io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="How strongly the image holds its frame. 1: exactly; lower it where the clip hardly moves.",
    )
    positions = io.String.Input(
        "positions",
        default="0, -1",
        tooltip="The frame that each image is, in their order: 0 is the first, -1 the last.",
    )
    strengths = io.String.Input(
        "strengths", default="1", tooltip="How strongly each image holds its frame, 0 to 1; one number is for all."
    )
    sides = [side_input(*side) for side in (("left", 128), ("top", 0), ("right", 128), ("bottom", 0))]
    own = [frames_input(), strength], [frames_input(), positions, strengths], [], [frames_input(), *sides]
    options = [io.DynamicCombo.Option(mode, inputs) for mode, inputs in zip(MODES, (*own, [frames_input()]))]
    return io.DynamicCombo.Input(
        "mode",
        options=options,
        tooltip="What is given. image to video: the first frame. key frames: any frames. inpaint: a clip but for the"
        " mask. outpaint: a clip or a still, on a larger canvas. cinemagraph: a still of which the mask moves.",
    )


class VideoInpaint(Node):
    """Node that tells a model which pixels of a clip are given, in the way that the model knows."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionVideoInpaint",
            display_name="Video Inpaint / Cinemagraph",
            category="stillmotion/conditioning",
            description="Makes a clip around given pixels: from a first frame, between key frames, in a mask, on a"
            " larger canvas.",
            search="inpaint video, video inpainting, img2vid, image to video, i2v, first last frame, interpolate,"
            " outpaint, cinemagraph, vid2vid, lumiere, mask",
            inputs=[
                io.Model.Input("model", tooltip="The model with its motion file."),
                io.Conditioning.Input("positive", tooltip="The prompt: what the clip shows."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input(
                    "image",
                    tooltip="What is given: a still, the key frames, or a clip. Sides that are no multiples of 8 are"
                    " padded; Keep Known Pixels cuts the clip to the size that was given.",
                ),
                mode_input(),
                whole_number(
                    "grow_mask_by", 6, -64, 64, "Pixels by which the mask grows before it is used; below 0 it shrinks."
                ),
                whole_number("feathering", 0, 0, 256, "Pixels over which the mask's edge fades, outside of it."),
                io.Boolean.Input(
                    "noise_mask",
                    default=True,
                    tooltip="The sampler puts known pixels back at every step. Off: the model alone keeps them, which"
                    " motion files trained for it and checkpoints for inpainting do.",
                ),
                loop_input(),
                io.Boolean.Input(
                    "fill_holes",
                    default=False,
                    optional=True,
                    tooltip="What the mask goes all around is made too: outlines are enough when painting.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where pixels are to be made: one for all frames, one each, or some that are spread"
                    " over them. Without it the image's alpha is taken, where it has one.",
                ),
            ],
            outputs=[
                io.Model.Output("told_model", display_name="model"),
                io.Conditioning.Output("told_positive", display_name="positive"),
                io.Conditioning.Output("told_negative", display_name="negative"),
                io.Latent.Output("latent"),
                io.Image.Output("preview", tooltip="What the model is told; what is to be made is hatched."),
                io.Image.Output("given", tooltip="The frames that were given, for Keep Known Pixels."),
                io.Mask.Output("made", display_name="mask", tooltip="What is made, for Keep Known Pixels."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        vae,
        image,
        mode,
        grow_mask_by,
        feathering,
        noise_mask,
        loop=False,
        fill_holes=False,
        mask=None,
    ) -> io.NodeOutput:
        # here and not above: kornia, for which ComfyUI's start need not wait
        from ..samplers.conditions import hatched, padded
        from . import inpainting, known

        way = inpainting.way_of(model, mode["mode"])
        check_family(model, vae)
        if way in (inpainting.FIRST_FRAME, inpainting.NOISE_MASK) and not noise_mask:
            raise ValueError(
                "Neither the motion file nor the checkpoint was trained to keep known pixels by itself, so that without"
                " noise_mask they are lost: turn noise_mask on."
            )
        mask = inpainting.prepared_mask(mask, image, fill_holes, grow_mask_by, feathering)
        given = inpainting.of_mode(mode, image, mask)
        whole = padded(given)
        if way == inpainting.CONDITION:
            model = known.with_known(model, *known.encoded(model, vae, whole), inpainting.NODE)
        if way == inpainting.FIRST_FRAME:
            model = known.with_first_frame(model, vae.encode(whole.frames[:1]), inpainting.NODE)
        if way == inpainting.CHECKPOINT:
            positive, negative = inpainting.told([positive, negative], vae.encode, whole)
        masks = 0 if mask is None else len(mask)
        inpainting.say(cls.hidden.unique_id, inpainting.report(given, masks, mode["mode"], way))
        model = looped(model, len(given.known)) if loop else model
        latent = inpainting.latent_of(vae, whole, noise_mask)
        return io.NodeOutput(model, positive, negative, latent, hatched(given), given.frames, inpainting.untold(given))


class KeepKnown(Node):
    """Node that puts known pixels back into a decoded clip."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionKeepKnownPixels",
            display_name="Keep Known Pixels",
            category="stillmotion/conditioning",
            description="Puts the pixels that were given back into the decoded clip, exactly, and cuts off what was"
            " padded.",
            search="composite, paste back, stitch, feather, inpaint crop, restore pixels",
            inputs=[
                io.Image.Input("image", tooltip="The decoded clip."),
                io.Image.Input("given", tooltip="Of Video Inpaint / Cinemagraph."),
                io.Mask.Input("mask", tooltip="Of Video Inpaint / Cinemagraph."),
                whole_number(
                    "feathering", 8, 0, 256, "Pixels over which what was made fades into what was given, outside."
                ),
                io.Float.Input(
                    "match_colours",
                    default=0.0,
                    optional=True,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far mean and contrast of each frame are moved to those of what was given, or of the"
                    " nearest given frame: against colours that drift. 0: not at all.",
                ),
            ],
            outputs=[io.Image.Output("kept_image", display_name="image")],
        )

    @classmethod
    def execute(cls, image, given, mask, feathering, match_colours=0.0) -> io.NodeOutput:
        from .inpainting import kept

        return io.NodeOutput(kept(image, given, mask, feathering, match_colours))
