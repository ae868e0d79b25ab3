"""The options of every command. Imports pydantic only, so that `--help` answers at once.

`--help` shows an option in the group of the class that first declares it. A description says when an option acts,
where it does not always.
"""

from .common import (
    BaseOptions,
    CameraOptions,
    ClipOptions,
    EvaluationOptions,
    MemoryOptions,
    OptimizationOptions,
    RuntimeOptions,
    TrainOptions,
)
from .condition import ConditionOptions
from .decouple import DecoupleOptions, DecouplingOptions, SpatialOptions
from .evaluate import EvaluateOptions
from .few_shot import FewShotOptions
from .inflate import InflateOptions, InflationOptions, LossOptions, TaskOptions, VideoOptions
from .other import CheckOptions, ConvertOptions, DemoOptions, ToyOptions

__all__ = [
    "BaseOptions",
    "CameraOptions",
    "CheckOptions",
    "ClipOptions",
    "ConditionOptions",
    "ConvertOptions",
    "DecoupleOptions",
    "DecouplingOptions",
    "DemoOptions",
    "EvaluateOptions",
    "EvaluationOptions",
    "FewShotOptions",
    "InflateOptions",
    "InflationOptions",
    "LossOptions",
    "MemoryOptions",
    "OptimizationOptions",
    "RuntimeOptions",
    "SpatialOptions",
    "TaskOptions",
    "ToyOptions",
    "TrainOptions",
    "VideoOptions",
]
