"""The nodes that cut one box out of a clip, around what is to be made, and put it back."""

from __future__ import annotations

from .compat import io, schema
from .node import Node

Cut = io.Custom("STILLMOTION_CROP")


def side_input(id: str):
    return io.Int.Input(
        id,
        default=0,
        min=0,
        max=8192,
        step=8,
        tooltip="Pixels that the crop is resized to; 0 in both: the crop stays as large as it is.",
    )


class CropToMask(Node):
    """Node that cuts out what lies around a mask, the same box in every frame."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionCropToMask",
            display_name="Crop to Mask",
            category="stillmotion/conditioning",
            description="Cuts the part around a mask out of a clip, one box for all frames, so that it is made in the"
            " model's own size.",
            search="inpaint crop, crop and stitch, crop to bounding box, mask crop, video crop, detailer",
            inputs=[
                io.Image.Input("image", tooltip="The clip, or a still."),
                io.Mask.Input("mask", tooltip="White where pixels are to be made: one, or one for each frame."),
                io.Int.Input(
                    "margin", default=64, min=0, max=4096, tooltip="Pixels around the mask that the model sees too."
                ),
                side_input("width"),
                side_input("height"),
            ],
            outputs=[
                io.Image.Output("cropped_image", display_name="image"),
                io.Mask.Output("cropped_mask", display_name="mask"),
                Cut.Output("crop", tooltip="For Stitch Back."),
            ],
        )

    @classmethod
    def execute(cls, image, mask, margin, width, height) -> io.NodeOutput:
        from .cropping import cropped

        return io.NodeOutput(*cropped(image, mask, margin, width, height))


class StitchBack(Node):
    """Node that puts a clip into the place that its crop was taken from."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionStitchBack",
            display_name="Stitch Back",
            category="stillmotion/conditioning",
            description="Puts a clip back into the whole frames that Crop to Mask cut it from.",
            search="inpaint stitch, crop and stitch, uncrop, paste back",
            inputs=[
                io.Image.Input("image", tooltip="The clip that was made of the crop, decoded."),
                Cut.Input("crop", tooltip="Of Crop to Mask."),
                io.Int.Input(
                    "feathering",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Pixels over which the mask's edge fades, outside of it; only with a mask.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Of Video Inpaint / Cinemagraph: what was made. Without it the whole crop is put back, with"
                    " what resizing did to it.",
                ),
            ],
            outputs=[io.Image.Output("whole_image", display_name="image")],
        )

    @classmethod
    def execute(cls, image, crop, feathering, mask=None) -> io.NodeOutput:
        from ..samplers.crops import stitched

        return io.NodeOutput(stitched(image, crop, mask, feathering))
