"""The nodes that ComfyUI shows: schemas and one call each."""

import logging

from ..networks.shown import ShownFilter
from .compat import ComfyExtension
from .crop import CropToMask, StitchBack
from .guidance import MotionAppearanceGuidance
from .guide import MGGuider
from .inpaint import KeepKnown, VideoInpaint
from .inspect import MeasureMotion, XTSlice
from .load import MotionLoRA, RecurrentMotionLoRA, STUNetLoader
from .noise import MappingNetworkNoise
from .prior import SpatialPrior
from .repaint import RePaintSampler
from .sample import MGGuidanceSampler
from .style import StyleBalance
from .upscale import MultiDiffusionUpscale
from .windows import TemporalWindows

logging.getLogger("stillmotion").addFilter(ShownFilter())


class StillmotionExtension(ComfyExtension):
    """The list of nodes that ComfyUI's loader asks for."""

    async def get_node_list(self):
        return [
            STUNetLoader,
            MotionLoRA,
            RecurrentMotionLoRA,
            SpatialPrior,
            MotionAppearanceGuidance,
            VideoInpaint,
            KeepKnown,
            CropToMask,
            StitchBack,
            RePaintSampler,
            MappingNetworkNoise,
            MGGuider,
            MGGuidanceSampler,
            TemporalWindows,
            MultiDiffusionUpscale,
            StyleBalance,
            MeasureMotion,
            XTSlice,
        ]
