"""The nodes that ComfyUI shows: schemas and one call each."""

from .compat import ComfyExtension
from .inspect import MeasureMotion, XTSlice
from .load import RecurrentMotionLoRA, STUNetLoader
from .noise import MappingNetworkNoise
from .style import StyleBalance


class StillmotionExtension(ComfyExtension):
    """What ComfyUI's loader asks for."""

    async def get_node_list(self):
        return [STUNetLoader, RecurrentMotionLoRA, MappingNetworkNoise, StyleBalance, MeasureMotion, XTSlice]
