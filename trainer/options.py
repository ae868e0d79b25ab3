"""The options of every command. Imports pydantic only, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .config import Options, Size

LARGEST_SEED = 2**63 - 1  # torch takes twice that, and what is drawn for one seed may use others near it
LARGEST_SIDE = 2048  # pixels, four times what SD1.5 was made for; more would fill the memory before a clip is read


class ClipOptions(Options):
    """What the commands that read clips share."""

    videos: Annotated[Path, Field(description="folder with the clips: videos, GIFs, folders of numbered pictures")]
    caption: Annotated[str | None, Field(description="one caption for all clips, instead of those beside them")] = None
    fps: Annotated[float, Field(ge=1, le=120, description="frames a second that are taken from each clip")] = 8
    frames: Annotated[int, Field(ge=2, le=256, description="frames of a training clip")] = 16
    size: Annotated[Size, Field(description="width x height in pixels, scaled and cropped to")] = (512, 320)
    crop: Annotated[Literal["center", "random"], Field(description="which part of a wider or taller clip is seen")] = (
        "center"
    )
    skip_bad: Annotated[bool, Field(description="go on without the clips that cannot be used")] = False

    @field_validator("size")
    @classmethod
    def size_in_cells(cls, size):
        if max(size) > LARGEST_SIDE or size[0] % 8 or size[1] % 8:
            raise ValueError(f"width and height must be multiples of 8 up to {LARGEST_SIDE}, such as 512x320")
        return size


class DemoOptions(Options):
    """Train on a few drawn clips and show what was learnt, on a machine with nothing but Python.

    Makes a small base model, ten clips of a motion, a motion file, and a clip without and with it. A second call goes
    on after the last part that was finished, and after the last save of the motion.
    """

    output: Annotated[Path, Field(description="folder for everything")] = Path("demo")
    motion: Annotated[Literal["swing", "grow", "orbit"], Field(description="what the drawn shapes do")] = "swing"
    base: Annotated[Path | None, Field(description="a base made before by `toy`; none: one is made now")] = None
    base_steps: Annotated[int, Field(ge=0, description="training steps of that base")] = 2000
    steps: Annotated[int, Field(ge=1, description="training steps of the motion")] = 1600
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="seed of everything")] = 0


class ToyOptions(Options):
    """Make a small Stable Diffusion checkpoint to learn and test with."""

    output: Annotated[Path, Field(description="the checkpoint to write; its contact sheet goes beside it")] = Path(
        "toy.safetensors"
    )
    steps: Annotated[int, Field(ge=0, description="training steps of the U-Net; 0 writes random weights")] = 2000
    autoencoder_steps: Annotated[int, Field(ge=0, description="training steps of the autoencoder")] = 1100
    unet: Annotated[Literal["small", "medium", "sd15"], Field(description="36.7, 44.3 or 111.5 M parameters")] = (
        "medium"
    )
    batch_size: Annotated[int, Field(ge=1, description="pictures in a training step of the U-Net")] = 16
    learning_rate: Annotated[float, Field(gt=0, description="highest learning rate of the U-Net")] = 3e-4
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="seed of the weights and of everything drawn")] = 0


class CheckOptions(ClipOptions):
    """Report which clips training would use, and why others cannot be."""

    output: Annotated[Path, Field(description="folder for the contact sheet")] = Path("check")


class TrainOptions(ClipOptions):
    """What the commands that train share."""

    base: Annotated[Path, Field(description="SD1.5-family model: a diffusers folder, a .safetensors or .ckpt file")]
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/motion"
    )
    resume: Annotated[bool, Field(description="go on from the last save in the output folder")] = False

    steps: Annotated[int, Field(ge=1, description="optimiser steps")]
    learning_rate: Annotated[float, Field(gt=0, le=1, description="highest rate of AdamW")] = 1e-4
    warm_up: Annotated[int, Field(ge=0, description="steps of rising rate, at most half of all; then it falls")] = 100
    batch_size: Annotated[int, Field(ge=1, description="clips computed at once, for each process")] = 1
    accumulation: Annotated[int, Field(ge=1, description="batches before each update")] = 1
    seed: Annotated[
        int, Field(ge=0, le=LARGEST_SEED, description="seed of the weights, the order, the noise and the samples")
    ] = 0

    caption_dropout: Annotated[float, Field(ge=0, le=1, description="share of clips seen without their caption")] = 0.1
    weighting: Annotated[
        Literal["uniform", "velocity"],
        Field(description="what a timestep counts: all alike as in the paper, or as in v-prediction: noisy ones more"),
    ] = "uniform"
    ema: Annotated[
        float | None,
        Field(ge=0, lt=1, description="decay of the running mean of the weights, which is exported; or none"),
    ]

    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="auto: bf16 on a GPU that has it, fp16 on another, fp32 on a CPU"),
    ] = "auto"
    checkpointing: Annotated[
        bool, Field(description="compute layers again in the backward pass: far less memory, a third more time")
    ] = True
    eight_bit: Annotated[bool, Field(description="8-bit AdamW; needs bitsandbytes")] = False
    deterministic: Annotated[
        bool,
        Field(description="on a GPU: slower kernels whose sums have one order, so that a resume is exact to the bit"),
    ] = False

    held_out: Annotated[int, Field(ge=0, description="clips kept from training, to measure the loss on")] = 0
    held_out_every: Annotated[int, Field(ge=1, description="steps between measurements with fixed noise")] = 100
    save_every: Annotated[int, Field(ge=1, description="steps between saves")] = 250
    keep: Annotated[int, Field(ge=1, description="saves that are kept")] = 3
    preview_every: Annotated[int | None, Field(ge=1, description="steps between previews; or none")] = 250
    preview_caption: Annotated[str | None, Field(description="caption of the previews; none: the first clip's")] = None
    preview_steps: Annotated[int, Field(ge=1, le=1000, description="DDIM steps of a preview")] = 25
    guidance: Annotated[float, Field(ge=1, le=50, description="classifier-free guidance of a preview")] = 7.5
    cache: Annotated[Path, Field(description="folder of encoded clips and captions, for all runs")] = Path("runs/cache")


class FewShotOptions(TrainOptions):
    """Learn one motion from a handful of clips.

    Writes one folder: the motion file, a workflow that uses it, options, log, previews and saves. A file called `save`
    or `save_quit` in that folder does what it says; Ctrl-C saves and stops; --resume goes on.
    """

    steps: Annotated[int, Field(ge=1, description="optimiser steps; the paper took up to 16000")] = 2000
    learning_rate: Annotated[float, Field(gt=0, le=1, description="highest rate of AdamW; the paper's was 3e-5")] = 1e-4
    ema: Annotated[
        float | None,
        Field(ge=0, lt=1, description="decay of the running mean of the weights, which is exported; or none"),
    ] = 0.995

    queries: Annotated[
        Literal["lora", "full", "none"], Field(description="what trains of the query projections: a LoRA, all, nothing")
    ] = "lora"
    rank: Annotated[int, Field(ge=1, le=320, description="rank of the LoRA on the queries")] = 16
    memory: Annotated[
        Literal["gated_scan", "paper_rnn", "none"],
        Field(description="recurrence in the self-attentions: gated and parallel, as printed in the paper, none"),
    ] = "gated_scan"
    frame_attention: Annotated[bool, Field(description="attention over frames in every transformer block")] = True
    temporal_blocks: Annotated[bool, Field(description="AnimateDiff's motion block after every unit as well")] = False
    first_frame: Annotated[
        Literal["noisy", "clean"],
        Field(
            description="clean: the first frame is given, and no part of the loss; needs image-to-video wiring later"
        ),
    ] = "noisy"

    @model_validator(mode="after")
    def trains_something(self):
        if self.queries == self.memory == "none" and not (self.frame_attention or self.temporal_blocks):
            raise ValueError("nothing would train: leave one of --queries, --memory, --frame-attention on")
        return self


class InflateOptions(TrainOptions):
    """Make a video model of an image model: learn motion in general from a set of captioned clips of any size.

    The set is a folder of clips, a table of them (.csv, .jsonl), or webdataset shards ("shards/{000..123}.tar"). The
    image model stays as it is. Writes one folder, as `fewshot` does. Files in trainer/presets fit graphics cards of
    8, 16, 24 and 80 GB: --config trainer/presets/inflate-24gb.toml.
    """

    videos: Annotated[Path, Field(description="folder of clips, table of them (.csv, .jsonl), or tar shards")]
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/video"
    )
    size: Annotated[Size, Field(description="width x height in pixels, scaled and cropped to")] = (256, 256)
    steps: Annotated[int, Field(ge=1, description="optimiser steps")] = 20000
    warm_up: Annotated[int, Field(ge=0, description="steps of rising rate, at most half of all; then it falls")] = 1000
    ema: Annotated[
        float | None,
        Field(ge=0, lt=1, description="decay of the running mean of the weights, which is exported; or none"),
    ] = 0.9999
    held_out_every: Annotated[int, Field(ge=1, description="steps between measurements with fixed noise")] = 500
    save_every: Annotated[int, Field(ge=1, description="steps between saves")] = 1000
    preview_every: Annotated[int | None, Field(ge=1, description="steps between previews; or none")] = 1000

    preset: Annotated[
        Literal["animatediff", "lumiere", "harivo", "lumiere-harivo", "higen"],
        Field(description="what is added to the image model: whose blocks over time, with what around them"),
    ] = "lumiere"
    halve: Annotated[
        tuple[int, ...] | None,
        Field(description="levels after which frames are halved, 0 the finest; or nowhere; none: as the preset has it"),
    ] = None
    narrow: Annotated[bool, Field(description="Lumiere's convolution blocks at half the width inside")] = False
    mapping: Annotated[bool | None, Field(description="HARIVO's mapping network; none: as the preset has it")] = None
    tokens: Annotated[bool | None, Field(description="HARIVO's frame-wise tokens; none: as the preset has it")] = None
    warm_start: Annotated[
        Path | None,
        Field(description="motion file, AnimateDiff module or MotionAdapter folder to begin with; or none"),
    ] = None
    schedule: Annotated[
        Literal["scaled_linear", "linear"],
        Field(description="noise schedule: the image model's own, or the noisier one of AnimateDiff and HARIVO"),
    ] = "scaled_linear"

    regularisation: Annotated[float, Field(ge=0, description="weight of HARIVO's L_reg; the paper's is 0.1")] = 0
    regularise_every: Annotated[int, Field(ge=1, description="steps from one with L_reg to the next one")] = 1
    detach_image: Annotated[bool, Field(description="L_reg without its gradient through the image model")] = False
    trs: Annotated[
        float, Field(ge=0, description="weight of temporally regularised self-attention; the paper's is 0.1")
    ] = 0
    trs_reduction: Annotated[
        Literal["row_l1", "sum"], Field(description="normalised by size, or summed up as printed")
    ] = "row_l1"
    contrastive: Annotated[
        float, Field(ge=0, description="weight of the decoupled contrastive loss; the paper's is 0.1")
    ] = 0
    queue: Annotated[int, Field(ge=32, description="frames of earlier steps that it compares with")] = 1024
    ramp: Annotated[int, Field(ge=0, description="steps in which the weights of these two rise from 0")] = 1000

    @field_validator("halve", mode="before")
    @classmethod
    def halve_in_words(cls, halve):
        if halve in ("nowhere", ["nowhere"]):  # a list is what the flag makes of a word
            return ()
        return None if halve == ["none"] else halve


class ConvertOptions(Options):
    """Make a motion file of another program's motion module, or the other way round.

    Reads AnimateDiff's modules for SD1.5 (.safetensors, .ckpt), folders of diffusers' MotionAdapter, and motion files.
    """

    input: Annotated[Path, Field(description="motion module, folder of a MotionAdapter, or motion file")]
    to: Annotated[
        Literal["stillmotion", "animatediff", "motion-adapter"], Field(description="form in which it is written")
    ] = "stillmotion"
    output: Annotated[Path, Field(description="file to write; for motion-adapter a folder")]
    lora: Annotated[tuple[Path, ...], Field(description="AnimateDiff motion LoRAs to merge into it")] = ()
    lora_strength: Annotated[
        float, Field(ge=-10, le=10, description="factor of what they change; below 0: backwards")
    ] = 1.0

    @field_validator("output")
    @classmethod
    def has_a_suffix_that_is_true(cls, output, info):
        if info.data.get("to") != "motion-adapter" and output.suffix != ".safetensors":
            raise ValueError("the name of a motion file ends in .safetensors")
        return output
