"""The options of evaluate."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from ..config import Options
from .common import Seed


class EvaluateOptions(Options):
    """Measure sets of clips: how much moves, how smooth it is, how far that can be trusted.

    Several sets are each compared with the first. With --generate the clips of a motion file are made first.
    """

    group: ClassVar[str] = "data"

    videos: Annotated[
        tuple[Path, ...], Field(description="sets: folders of clips, tables of them (.csv, .jsonl), tar shards, clips")
    ] = ()
    caption: Annotated[str | None, Field(description="one prompt for all clips, instead of the files beside them")] = (
        None
    )
    fps: Annotated[
        float | None, Field(ge=1, le=120, description="frames a second that are looked at; none: each frame of a clip")
    ] = None
    first: Annotated[int | None, Field(ge=1, description="so many clips of each set are looked at; none: all")] = None
    skip_bad: Annotated[bool, Field(description="go on without the clips that cannot be measured")] = False
    processes: Annotated[int, Field(ge=1, le=256, description="processes that measure clips, where there are many")] = 2
    seed: Seed = 0
    output: Annotated[Path, Field(description="folder for evaluation.json, clips.csv and pictures")] = Path(
        "evaluation"
    )
    cache: Annotated[Path, Field(description="folder of numbers that are known already")] = Path("runs/cache")

    @model_validator(mode="after")
    def has_clips(self):
        if not self.videos:
            raise ValueError("--videos is required: sets of clips")
        return self
