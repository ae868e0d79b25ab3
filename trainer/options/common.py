"""The options that several commands share, a class for each group of the help."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from ..config import Options, Size

COMMON = "videos", "caption", "base", "output", "size", "frames", "fps", "steps", "dry_run"
"""Options of commands that train which most people set."""

LARGEST_SEED = 2**63 - 1  # torch takes twice that, and what is drawn for one seed may use others near it


LARGEST_SIDE = 2048  # pixels, four times what SD1.5 was made for; more would fill the memory before a clip is read


def in_cells(size: tuple[int, int]) -> tuple[int, int]:
    if max(size) > LARGEST_SIDE or size[0] % 8 or size[1] % 8:
        raise ValueError(f"width and height must be multiples of 8 up to {LARGEST_SIDE}, such as 512x320")
    return size


CellSize = Annotated[Size, AfterValidator(in_cells)]
"""Width and height that are whole cells of a latent."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, description="seed of everything that is random")]


class ClipOptions(Options):
    """Options of all commands that read clips."""

    group: ClassVar[str] = "data"

    videos: Annotated[Path, Field(description="folder of clips, table of them (.csv, .jsonl), or tar shards")]
    caption: Annotated[str | None, Field(description="one caption for all clips, instead of the files beside them")] = (
        None
    )
    fps: Annotated[float, Field(ge=1, le=120, description="frames a second that are taken from each clip")] = 8
    frames: Annotated[int, Field(ge=2, le=256, description="frames of a training clip")] = 16
    size: Annotated[CellSize, Field(description="width x height in pixels, scaled and cropped to")] = (512, 320)
    crop: Annotated[Literal["center", "random"], Field(description="which part of a wider or taller clip is seen")] = (
        "center"
    )
    skip_bad: Annotated[bool, Field(description="go on without the clips that cannot be used")] = False


class CameraOptions(Options):
    """Options of commands that make clips of pictures."""

    group: ClassVar[str] = "data"

    camera: Annotated[
        Literal["zoom-in", "zoom-out", "pan-left", "pan-right", "tilt-up", "tilt-down", "roll-cw", "roll-ccw"] | None,
        Field(description="clips are made by a camera that moves so over each picture (or clip) of --videos"),
    ] = None
    camera_range: Annotated[
        float,
        Field(
            gt=0,
            le=2,
            description="how far it goes in a clip: zooms by 1 + this, pans so many widths, tilts so many heights,"
            " rolls this times 90 degrees; with --camera",
        ),
    ] = 0.5


class BaseOptions(Options):
    group: ClassVar[str] = "model"

    base: Annotated[
        Path,
        Field(
            description="SD1.5-family model: a diffusers folder, a .safetensors or .ckpt file, or its name in ComfyUI;"
            " auto: the best in ComfyUI's folders and the Hugging Face cache"
        ),
    ] = Path("auto")


class OptimizationOptions(Options):
    group: ClassVar[str] = "optimization"

    steps: Annotated[int, Field(ge=1, description="optimizer steps")]
    learning_rate: Annotated[float, Field(gt=0, le=1, description="highest learning rate of AdamW")] = 1e-4
    final_learning_rate: Annotated[
        float, Field(ge=0, le=1, description="learning rate of the last step, which linear decay leads to")
    ] = 0
    warm_up: Annotated[
        int, Field(ge=0, description="steps of linear warm-up, at most half of the run; linear decay follows")
    ] = 100
    batch_size: Annotated[int, Field(ge=1, description="clips of a micro-batch on each GPU")] = 1
    accumulation: Annotated[
        int,
        Field(ge=1, description="gradient-accumulation steps; effective batch size: this x batch size x processes"),
    ] = 1
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="seed of weights, data order, noise and previews")
    ] = 0
    caption_dropout: Annotated[
        float, Field(ge=0, le=1, description="share of clips that are seen with an empty prompt, for CFG")
    ] = 0.1
    weighting: Annotated[
        Literal["uniform", "velocity"],
        Field(description="loss weight of a timestep: uniform ε-MSE, or equivalent to v-MSE (1/ᾱ, at most 20)"),
    ] = "uniform"
    ema: Annotated[float | None, Field(ge=0, lt=1, description="EMA decay; EMA weights are exported; none: no EMA")]

    @model_validator(mode="after")
    def rate_falls(self):
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"--final-learning-rate is {self.final_learning_rate:g}, above --learning-rate, {self.learning_rate:g}"
            )
        return self


class MemoryOptions(Options):
    group: ClassVar[str] = "memory"

    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="mixed precision; auto: bf16 on a GPU that has it, fp16 on another, fp32 on a CPU"),
    ] = "auto"
    checkpointing: Annotated[
        bool,
        Field(
            description="gradient checkpointing: compute layers again in the backward pass; far less VRAM, 1.3 x time"
        ),
    ] = True
    eight_bit: Annotated[bool, Field(description="8-bit AdamW; needs bitsandbytes")] = False


class EvaluationOptions(Options):
    group: ClassVar[str] = "evaluation"

    held_out: Annotated[int, Field(ge=0, description="clips kept from training, for the held-out loss")] = 0
    held_out_every: Annotated[int, Field(ge=1, description="steps between held-out losses, with fixed noise")] = 100
    preview_every: Annotated[int | None, Field(ge=1, description="steps between previews; or none")] = 250
    preview_caption: Annotated[str | None, Field(description="prompt of the previews; none: the first caption")] = None
    preview_steps: Annotated[int, Field(ge=1, le=1000, description="DDIM steps of previews and workflow")] = 25
    guidance: Annotated[float, Field(ge=1, le=50, description="CFG scale of previews and workflow")] = 7.5
    guidance_early: Annotated[
        float | None, Field(ge=1, le=50, description="CFG scale in the first 30 % of the schedule; none: the same")
    ] = None
    mitigation: Annotated[
        float, Field(ge=0, le=200, description="alpha of mitigating gradients in previews and workflow; 0: off")
    ] = 0


class RuntimeOptions(Options):
    group: ClassVar[str] = "runtime"

    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/motion"
    )
    resume: Annotated[bool, Field(description="go on from the last training checkpoint in the output folder")] = False
    dry_run: Annotated[
        bool, Field(description="say what would be trained, on which base, in how much memory and time; write nothing")
    ] = False
    install: Annotated[
        Path,
        Field(
            description="ComfyUI's folder that motion file and workflow are copied into at the end; auto: the one that"
            " is found; no: none"
        ),
    ] = Path("auto")
    save_every: Annotated[int, Field(ge=1, description="steps between training checkpoints")] = 250
    keep: Annotated[int, Field(ge=1, description="training checkpoints that are kept")] = 3
    deterministic: Annotated[
        bool, Field(description="deterministic kernels on a GPU, slower; --resume is then exact to the bit")
    ] = False
    cache: Annotated[Path, Field(description="folder of encoded latents and captions, for all runs")] = Path(
        "runs/cache"
    )


class TrainOptions(RuntimeOptions, EvaluationOptions, MemoryOptions, OptimizationOptions, BaseOptions, ClipOptions):
    """Options of all commands that train."""

    group: ClassVar[str] = "model"
