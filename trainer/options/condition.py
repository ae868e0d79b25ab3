"""The options of `condition`: the tasks that clips are seen in, and the motion file to start from."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .common import COMMON
from .inflate import InflationOptions, VideoOptions


class ConditionOptions(VideoOptions):
    """Teach known pixels: image-to-video, key frames, inpainting, outpainting and cinemagraphs in one file.

    Starts from a motion file of ours or AnimateDiff's (--init), or from nothing, and learns from a set of captioned
    clips as `inflate` does. Each clip is seen in one of the tasks, by their shares. The image model stays as it is. The
    files for `inflate` in trainer/presets fit here too.
    """

    group: ClassVar[str] = "model"
    examples: ClassVar[tuple[str, ...]] = (
        "--videos ./clips --init motion.safetensors",
        "--videos ./clips --init mm_sd_v15_v3.safetensors --inpaint 1 --text-to-video 0",
    )
    common: ClassVar[tuple[str, ...]] = (*COMMON, "init", "resume")

    preset: Annotated[
        Literal["animatediff", "lumiere", "harivo", "lumiere-harivo", "higen"],
        Field(description="whose architecture, where there is no --init"),
    ] = "animatediff"
    init: Annotated[
        Path | None,
        Field(description="motion file, AnimateDiff module or MotionAdapter folder that learns it, with all its parts"),
    ] = None
    schedule: Annotated[
        Literal["scaled_linear", "linear"] | None,
        Field(description="noise schedule; none: that of --init, or the image model's own"),
    ] = None
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/condition"
    )
    steps: Annotated[int, Field(ge=1, description="optimizer steps")] = 10000
    learning_rate: Annotated[float, Field(gt=0, le=1, description="highest learning rate of AdamW")] = 5e-5

    @model_validator(mode="after")
    def architecture_is_one(self):
        own = InflationOptions.model_fields.keys() - {"preset", "init", "schedule"}
        if self.init and (given := sorted(name for name in own if getattr(self, name) is not None)):
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for a new motion file, and --init has its own parts: leave one out"
            )
        return self
