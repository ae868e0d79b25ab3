"""The options of every command. Imports pydantic only, so that `--help` answers at once.

`--help` shows an option in the group of the class that first declares it. A description says when an option acts,
where it does not always.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .config import Options, Size

LARGEST_SEED = 2**63 - 1  # torch takes twice that, and what is drawn for one seed may use others near it
LARGEST_SIDE = 2048  # pixels, four times what SD1.5 was made for; more would fill the memory before a clip is read

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, description="seed of everything that is random")]


class ClipOptions(Options):
    """Options of all commands that read clips."""

    group: ClassVar[str] = "data"

    videos: Annotated[Path, Field(description="folder with the clips: videos, GIFs, folders of numbered pictures")]
    caption: Annotated[str | None, Field(description="one caption for all clips, instead of the files beside them")] = (
        None
    )
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
    seed: Seed = 0


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
    seed: Seed = 0


class CheckOptions(ClipOptions):
    """Report which clips training would use, and why others cannot be."""

    output: Annotated[Path, Field(description="folder for the contact sheet")] = Path("check")
    base: Annotated[
        Path | None,
        Field(description="SD1.5-family model whose autoencoder HiGen's factors are measured with; none: they are not"),
    ] = None
    features: Annotated[
        Path, Field(description="folder of DINOv2 or CLIP for the appearance factor, or latent; with --base")
    ] = Path("latent")
    cache: Annotated[Path, Field(description="folder of encoded latents; with --base")] = Path("runs/cache")


class BaseOptions(Options):
    group: ClassVar[str] = "model"

    base: Annotated[Path, Field(description="SD1.5-family model: a diffusers folder, a .safetensors or .ckpt file")]


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


class FewShotOptions(TrainOptions):
    """Learn one motion from a handful of clips.

    Writes one folder: the motion file, a workflow that uses it, options, log, previews and training checkpoints. A file
    called `save` or `save_quit` in that folder does what it says; Ctrl-C saves and stops; --resume goes on.
    """

    group: ClassVar[str] = "model"
    renamed: ClassVar[dict[str, str]] = {"memory": "recurrence"}

    steps: Annotated[int, Field(ge=1, description="optimizer steps; the paper took up to 16000")] = 2000
    learning_rate: Annotated[
        float, Field(gt=0, le=1, description="highest learning rate of AdamW; the paper's was 3e-5")
    ] = 1e-4
    ema: Annotated[float | None, Field(ge=0, lt=1, description="EMA decay; EMA weights are exported; none: no EMA")] = (
        0.995
    )

    recurrence: Annotated[
        Literal["gated_scan", "paper_rnn", "none"],
        Field(description="recurrence in the self-attentions: gated scan, the paper's RNN as printed, or none"),
    ] = "gated_scan"
    queries: Annotated[
        Literal["lora", "full", "none"],
        Field(description="what trains of the query projections (to_q): LoRA, all, none"),
    ] = "lora"
    rank: Annotated[int, Field(ge=1, le=320, description="rank of that LoRA; with --queries lora")] = 16
    frame_attention: Annotated[bool, Field(description="attention over frames in every transformer block")] = True
    frame_heads: Annotated[int, Field(ge=1, description="its heads; with --frame-attention")] = 8
    temporal_blocks: Annotated[bool, Field(description="AnimateDiff's motion block after every unit as well")] = False
    first_frame: Annotated[
        Literal["noisy", "clean"],
        Field(
            description="clean: the first frame is given, and no part of the loss; needs image-to-video wiring later"
        ),
    ] = "noisy"

    @model_validator(mode="after")
    def trains_something(self):
        if self.queries == self.recurrence == "none" and not (self.frame_attention or self.temporal_blocks):
            raise ValueError("nothing would train: leave one of --queries, --recurrence, --frame-attention on")
        return self


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


class InflateOptions(LossOptions, InflationOptions, TrainOptions):
    """Make a video model of an image model: learn motion in general from a set of captioned clips of any size.

    The set is a folder of clips, a table of them (.csv, .jsonl), or webdataset shards ("shards/{000..123}.tar"). The
    image model stays as it is. Writes one folder, as `fewshot` does. Files in trainer/presets fit GPUs of 8, 16, 24 and
    80 GB: --config trainer/presets/inflate-24gb.toml.
    """

    group: ClassVar[str] = "model"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "harivo": HARIVO,
        "lumiere-harivo": {**HARIVO_LOSSES, **HARIVO_SAMPLING},
    }

    videos: Annotated[Path, Field(description="folder of clips, table of them (.csv, .jsonl), or tar shards")]
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/video"
    )
    size: Annotated[Size, Field(description="width x height in pixels, scaled and cropped to")] = (256, 256)
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


class SpatialOptions(Options):
    """What trains of the image model itself, and the pictures that keep it one."""

    group: ClassVar[str] = "spatial weights"

    spatial: Annotated[
        Literal["frozen", "lora", "full"],
        Field(description="what trains of the image model: nothing, a LoRA in its attentions, or all of it"),
    ] = "frozen"
    spatial_rank: Annotated[int, Field(ge=1, le=320, description="rank of that LoRA; with --spatial lora")] = 16
    spatial_lr_mult: Annotated[
        float, Field(gt=0, le=10, description="learning rate of those weights, times --learning-rate")
    ] = 0.2
    spatial_grad_scale: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description="factor on their gradients, as HiGen's code has one of 0.2; AdamW divides it out again, so"
            " that it acts through the clip of the gradients' norm alone: --spatial-lr-mult is what it was meant to do",
        ),
    ] = 1.0
    images: Annotated[
        Path | None,
        Field(description="folder, table or tar shards of captioned pictures; none: frames of the clips"),
    ] = None
    image_share: Annotated[
        float,
        Field(ge=0, lt=1, description="share of micro-batches that are pictures; unless --spatial is frozen"),
    ] = 0.25


class DecouplingOptions(Options):
    """HiGen's spatial prior and guidance, and how clips are asked about them."""

    group: ClassVar[str] = "decoupling"

    prior: Annotated[bool, Field(description="the spatial prior: the clip's middle frame as its ground")] = True
    motion: Annotated[bool, Field(description="guidance by the motion factor of each transition")] = True
    appearance: Annotated[bool, Field(description="guidance by the similarities of the frames")] = True
    motion_norm: Annotated[
        Literal["l1", "l2sq"],
        Field(description="how motion is measured on latents; l1: 300 to 600 is lively, as in the paper"),
    ] = "l1"
    interpolation: Annotated[
        Literal["mlp_then_interp", "sin_then_interp"],
        Field(description="when transitions become frames: as in the paper, or as in HiGen's released network"),
    ] = "mlp_then_interp"
    features: Annotated[
        Path,
        Field(
            description="folder of DINOv2 or CLIP as transformers reads it, for the appearance factor; latent: the"
            " colours of parts of the frame, which needs no model and tells no more than that"
        ),
    ] = Path("latent")
    prior_dropout: Annotated[float, Field(ge=0, le=1, description="share of clips that go without the prior")] = 0.1
    factor_dropout: Annotated[
        float, Field(ge=0, le=1, description="share of clips that go without the motion factor, and without the other")
    ] = 0.1
    offset_noise: Annotated[
        float, Field(ge=0, le=1, description="one more normal number for each channel of a frame, times this")
    ] = 0


HIGEN_FULL: dict[str, Any] = {"spatial": "full", "learning_rate": 5e-5, "steps": 25000, "frames": 32}
"""How HiGen trains (Qing et al. 2023, arXiv 2312.04483, section 4.1), where its defaults differ from ours."""


class DecoupleOptions(DecouplingOptions, SpatialOptions, InflateOptions):
    """Train HiGen: clips of a still that is made first, with two dials for how much happens in them.

    Learns from a set of captioned clips, as `inflate` does: the spatial prior, guidance by motion and appearance
    factors that are measured on the clips, and the blocks over time of --preset. With --spatial lora or full the image
    model trains too, on pictures beside the clips. Files in trainer/presets fit GPUs of 8, 16, 24 and 80 GB.
    """

    group: ClassVar[str] = "model"
    presets: ClassVar[dict[str, dict[str, Any]]] = {**InflateOptions.presets, "higen_full": HIGEN_FULL}

    preset: Annotated[
        Literal["animatediff", "lumiere", "harivo", "lumiere-harivo", "higen", "higen_full"],
        Field(description="whose blocks over time; higen_full sets --spatial full and the paper's schedule too"),
    ] = "higen"
    output: Annotated[Path, Field(description="folder of the run; the motion file is named after it")] = Path(
        "runs/higen"
    )

    @model_validator(mode="after")
    def asks_for_something(self):
        if not (self.prior or self.motion or self.appearance):
            raise ValueError("neither the prior nor guidance would train: leave one of --prior, --motion, --appearance")
        return self

    @model_validator(mode="after")
    def pictures_train_something(self):
        if self.images and self.spatial == "frozen":
            raise ValueError("--images are for the image model, which is frozen: add --spatial lora or full")
        return self


class ConvertOptions(Options):
    """Make a motion file of another program's motion module, or the other way round.

    Reads AnimateDiff's modules for SD1.5 (.safetensors, .ckpt), folders of diffusers' MotionAdapter, and motion files;
    and HiGen's release (.pth), which is an image model as well: that becomes a file of its own.
    """

    input: Annotated[Path, Field(description="motion module, folder of a MotionAdapter, motion file, HiGen's release")]
    to: Annotated[
        Literal["stillmotion", "animatediff", "motion-adapter", "higen"],
        Field(description="form in which it is written"),
    ] = "stillmotion"
    output: Annotated[Path, Field(description="file to write; for motion-adapter a folder")]
    lora: Annotated[tuple[Path, ...], Field(description="AnimateDiff motion LoRAs to merge into it")] = ()
    lora_strength: Annotated[
        float, Field(ge=-10, le=10, description="factor of what they change; below 0: backwards")
    ] = 1.0
    model: Annotated[
        Path | None,
        Field(
            description="the image model in HiGen's release: file to write (none: beside the output); with --to higen"
            " the file to read"
        ),
    ] = None
    with_: Annotated[
        Path | None,
        Field(
            description="checkpoint of SD2.x whose text encoder and autoencoder make a whole checkpoint of the image"
            " model in HiGen's release (none: a U-Net alone)"
        ),
    ] = None

    @field_validator("output")
    @classmethod
    def has_a_suffix_that_is_true(cls, output, info):
        suffix = {"higen": ".pth", "motion-adapter": output.suffix}.get(info.data.get("to"), ".safetensors")
        if output.suffix != suffix:
            of = "HiGen's release" if suffix == ".pth" else "a motion file"
            raise ValueError(f"the name of {of} ends in {suffix}")
        return output

    @model_validator(mode="after")
    def names_the_image_model(self):
        if self.to == "higen" and self.model is None:
            raise ValueError("--to higen needs --model, the image model that goes with the motion file")
        if self.to == "higen" and (self.lora or self.with_):
            raise ValueError("--lora and --with change nothing that is written with --to higen; leave them out")
        if self.model and self.model in (self.output, self.with_):
            raise ValueError(f"--model is {self.model}, as another option is, and would replace it; name a new file")
        if self.model and self.to != "higen" and self.model.suffix != ".safetensors":
            raise ValueError(f"--model is {self.model}; the name of an image model ends in .safetensors")
        return self
