"""The options of evaluate."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from ..config import Options
from .common import LARGEST_SEED, CellSize


class GenerateOptions(Options):
    """Options of clips that a command samples before it measures them."""

    group: ClassVar[str] = "generation"

    generate: Annotated[
        Path | None,
        Field(description="motion file whose clips are sampled, with --base and --prompts, and measured first"),
    ] = None
    over: Annotated[
        Path | None,
        Field(description="path of the motion model that it was learnt on top of; with --generate"),
    ] = None
    prompts: Annotated[Path | None, Field(description="text file with a prompt in each line; with --generate")] = None
    seeds: Annotated[int, Field(ge=1, le=10_000, description="clips of each prompt; with --generate")] = 1
    frames: Annotated[int, Field(ge=2, le=256, description="of each clip; with --generate")] = 16
    size: Annotated[CellSize, Field(description="width x height in pixels; with --generate")] = (512, 320)
    steps: Annotated[int, Field(ge=1, le=1000, description="DDIM steps; with --generate")] = 25
    guidance: Annotated[float, Field(ge=1, le=50, description="CFG scale; with --generate")] = 7.5


class EvaluateOptions(GenerateOptions):
    """Measure sets of clips: how much moves, how smooth it is, how far that can be trusted.

    Several sets are each compared with the first, or with the one that --reference names. With --generate the clips of
    a motion file are sampled first; a second call goes on where the first one ended.
    """

    group: ClassVar[str] = "data"
    examples: ClassVar[tuple[str, ...]] = (
        "--videos samples/ours samples/theirs",
        "--generate motion.safetensors --base sd15.safetensors --prompts prompts.txt --seeds 4",
    )

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
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="seed of the draws that intervals come from, and of no clip")
    ] = 0
    output: Annotated[Path, Field(description="folder for evaluation.json, clips.csv and pictures")] = Path(
        "evaluation"
    )
    cache: Annotated[Path, Field(description="folder of numbers that are known already")] = Path("runs/cache")

    clip: Annotated[
        Path | None,
        Field(
            description="folder of a CLIP, as transformers saves it, or OpenAI's ViT-B-32.pt, for temporal consistency"
            " and CLIPSIM"
        ),
    ] = None
    features: Annotated[
        Path | None,
        Field(description="folder of DINOv2 or CLIP for appearance factor and Fréchet distance; none: --clip's"),
    ] = None
    fvd: Annotated[
        Path | None,
        Field(description="i3d_torchscript.pt, a program: from a source that you trust; for FVD, with --reference"),
    ] = None
    base: Annotated[
        Path | None, Field(description="SD1.5-family model, or auto, for the motion factor and --generate")
    ] = None
    reference: Annotated[
        Path | None,
        Field(description="set that the others are compared with; with a network also by Fréchet distance"),
    ] = None
    anyway: Annotated[bool, Field(description="Fréchet distance of fewer than 256 clips")] = False

    @model_validator(mode="after")
    def has_clips(self):
        if not self.videos and not self.generate:
            raise ValueError("--videos is required, sets of clips, or --generate with a motion file to make one")
        if bool(self.generate) != bool(self.prompts) or self.generate and not self.base:
            raise ValueError("--generate, --prompts and --base go together: a motion file, a text file, an image model")
        if self.over and not self.generate:
            raise ValueError("--over is of the motion file that --generate names")
        if self.fvd and not self.reference:
            raise ValueError("--fvd is a distance from a set: it needs --reference")
        if self.anyway and not (self.reference and (self.clip or self.features or self.fvd)):
            raise ValueError(
                "--anyway is for the Fréchet distance: it needs --reference, and --features, --clip or --fvd"
            )
        return self
