"""The options of `inflate`: architecture, losses, and the presets of papers."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..config import Options
from .common import COMMON, CellSize, TrainOptions


class LossOptions(Options):
    """HARIVO's losses, for any command that trains on clips."""

    group: ClassVar[str] = "optimization"

    regularisation: Annotated[float, Field(ge=0, description="loss weight of HARIVO's L_reg; the paper's is 0.1")] = 0
    regularise_every: Annotated[
        int, Field(ge=1, description="steps from one with L_reg to the next; with --regularisation")
    ] = 1
    detach_image: Annotated[
        bool, Field(description="L_reg without its gradient through the image model; with --regularisation")
    ] = False
    trs: Annotated[
        float, Field(ge=0, description="loss weight of temporal regularised self-attention; the paper's is 0.1")
    ] = 0
    trs_reduction: Annotated[
        Literal["row_l1", "sum"], Field(description="normalised by size, or summed up as printed; with --trs")
    ] = "row_l1"
    contrastive: Annotated[
        float, Field(ge=0, description="loss weight of the decoupled contrastive loss; the paper's is 0.1")
    ] = 0
    queue: Annotated[int, Field(ge=32, description="negatives in its queue; with --contrastive")] = 1024
    ramp: Annotated[
        int, Field(ge=0, description="steps in which the weights of --trs and --contrastive rise from 0")
    ] = 1000


TemporalKind = Literal["attention", "convolution", "factorised", "transformer", "stacked"]


class InflationOptions(Options):
    """The architecture that is added to the image model; `none` means: as the preset has it."""

    group: ClassVar[str] = "model"
    renamed: ClassVar[dict[str, str]] = {"warm_start": "init"}

    preset: Annotated[
        Literal["animatediff", "lumiere", "harivo", "lumiere-harivo", "higen"],
        Field(
            description="whose architecture; harivo sets the paper's losses, schedules, frames, fps and sampling too"
        ),
    ] = "lumiere"
    init: Annotated[
        Path | None,
        Field(description="motion file, AnimateDiff module or MotionAdapter folder to start from; or none"),
    ] = None
    schedule: Annotated[
        Literal["scaled_linear", "linear"],
        Field(description="noise schedule: the image model's own, or the noisier one of AnimateDiff and HARIVO"),
    ] = "scaled_linear"
    halve: Annotated[
        tuple[int, ...] | None,
        Field(description="U-Net levels with temporal downsampling, 0 the finest; or nowhere; none: the preset's"),
    ] = None
    blocks: Annotated[
        tuple[str, ...] | None,
        Field(
            description="temporal blocks of each level, finest first, or of all: kinds joined by +; none: the preset's"
        ),
    ] = None
    middle: Annotated[bool | None, Field(description="blocks in the middle of the U-Net; none: the preset's")] = None
    heads: Annotated[int | None, Field(ge=1, description="heads of attention blocks; none: the preset's")] = None
    positional: Annotated[bool | None, Field(description="frame positions in attention blocks; none: the preset's")] = (
        None
    )
    norm_scope: Annotated[
        Literal["frame", "clip"] | None,
        Field(description="GroupNorm statistics of temporal blocks, over a frame or a clip; none: the preset's"),
    ] = None
    layers: Annotated[
        int | None, Field(ge=1, le=16, description="layers of Lumiere's attention block; none: the preset's")
    ] = None
    narrow: Annotated[
        bool | None, Field(description="Lumiere's convolution blocks at half of their width; none: the preset's")
    ] = None
    mapping: Annotated[bool | None, Field(description="HARIVO's mapping network; none: the preset's")] = None
    mapping_kernel: Annotated[
        Literal[1, 3] | None, Field(description="kernel of its convolutions over pixels; with --mapping; none: 1")
    ] = None
    tokens: Annotated[bool | None, Field(description="HARIVO's frame-wise tokens; none: the preset's")] = None
    token_count: Annotated[
        int | None, Field(ge=1, le=64, description="tokens of each frame; with --tokens; none: 3")
    ] = None
    token_gate: Annotated[
        Literal["neutral", "paper"] | None,
        Field(description="tokens start at a tenth of a prompt token's weight, or at all of it; none: neutral"),
    ] = None

    @field_validator("halve", mode="before")
    @classmethod
    def halve_in_words(cls, halve):
        if halve in ("nowhere", ["nowhere"]):  # a list is what the flag makes of a word
            return ()
        return None if halve == ["none"] else halve

    @field_validator("blocks", mode="before")
    @classmethod
    def blocks_in_words(cls, blocks):
        return None if blocks == ["none"] else [blocks] if isinstance(blocks, str) else blocks


HARIVO_LOSSES: dict[str, Any] = {"regularisation": 0.1, "trs": 0.1, "contrastive": 0.1, "ramp": 1000}


HARIVO_SAMPLING: dict[str, Any] = {"guidance_early": 12, "guidance": 7.5, "mitigation": 40}


HARIVO: dict[str, Any] = {
    **HARIVO_LOSSES,
    **HARIVO_SAMPLING,
    **{"frames": 24, "fps": 6, "learning_rate": 1e-4, "final_learning_rate": 1e-5, "schedule": "linear"},
}
"""How HARIVO trains and samples (Kwon et al. 2024, arXiv 2410.07763)."""


Share = Annotated[float, Field(ge=0, le=1)]


class TaskOptions(Options):
    """In which tasks clips are seen; the shares count relative to their sum."""

    group: ClassVar[str] = "known pixels"

    text_to_video: Annotated[Share, Field(description="share of clips of which no pixel is known")] = 0.2
    image_to_video: Annotated[Share, Field(description="share of clips whose first frame is known")] = 0.3
    key_frames: Annotated[Share, Field(description="share with one to four known frames, drawn at random")] = 0.1
    inpaint: Annotated[Share, Field(description="share with a hole: a rectangle or brush stroke that drifts")] = 0.2
    outpaint: Annotated[Share, Field(description="share with unknown borders on one to four sides")] = 0.1
    cinemagraph: Annotated[
        Share, Field(description="share of clips that are made to stand still around a region, and are known there")
    ] = 0.1

    @model_validator(mode="after")
    def something_is_known(self):
        if not any(share for name, share in self.shares.items() if name != "text_to_video"):
            raise ValueError("in no task a pixel is known: give --image-to-video or another one a share above 0")
        return self

    @property
    def shares(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in TaskOptions.model_fields}


class VideoOptions(TaskOptions, LossOptions, InflationOptions, TrainOptions):
    """Options of all commands that learn from a set of clips of any size."""

    group: ClassVar[str] = "model"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "harivo": HARIVO,
        "lumiere-harivo": {**HARIVO_LOSSES, **HARIVO_SAMPLING},
    }

    videos: Annotated[Path, Field(description="folder of clips, table of them (.csv, .jsonl), or tar shards")]
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/video"
    )
    size: Annotated[CellSize, Field(description="width x height in pixels, scaled and cropped to")] = (256, 256)
    steps: Annotated[int, Field(ge=1, description="optimizer steps")] = 20000
    warm_up: Annotated[
        int, Field(ge=0, description="steps of linear warm-up, at most half of the run; linear decay follows")
    ] = 1000
    ema: Annotated[float | None, Field(ge=0, lt=1, description="EMA decay; EMA weights are exported; none: no EMA")] = (
        0.9999
    )
    held_out_every: Annotated[int, Field(ge=1, description="steps between held-out losses, with fixed noise")] = 500
    save_every: Annotated[int, Field(ge=1, description="steps between training checkpoints")] = 1000
    preview_every: Annotated[int | None, Field(ge=1, description="steps between previews; or none")] = 1000

    @model_validator(mode="before")
    @classmethod
    def preset_gives_defaults(cls, values):
        """Fill in a preset's numbers where nothing else was said."""
        return {**cls.presets.get(values.get("preset"), {}), **values} if isinstance(values, dict) else values


class ConditionOption(Options):
    group: ClassVar[str] = "known pixels"

    condition: Annotated[
        bool, Field(description="teach known pixels in the same run, as `condition` does, in the tasks below")
    ] = False


class InflateOptions(VideoOptions, ConditionOption):
    """Make a video model of an image model: learn motion in general from a set of captioned clips of any size.

    The set is a folder of clips, a table of them (.csv, .jsonl), or webdataset shards ("shards/{000..123}.tar"). The
    image model stays as it is. Writes one folder, as `fewshot` does. Files in trainer/presets fit GPUs of 8, 16, 24 and
    80 GB: --config trainer/presets/inflate-24gb.toml.
    """

    group: ClassVar[str] = "model"
    examples: ClassVar[tuple[str, ...]] = (
        "--videos ./clips --config trainer/presets/inflate-24gb.toml",
        '--videos "shards/{000..123}.tar" --base sd15.safetensors --preset harivo',
        "--videos ./clips --init mm_sd_v15_v2.safetensors --preset animatediff --schedule linear",
    )
    common: ClassVar[tuple[str, ...]] = (*COMMON, "preset", "init", "resume")
