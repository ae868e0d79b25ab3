"""The options of commands that train no motion: check, toy, demo, convert."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..config import Options
from .common import CameraOptions, ClipOptions, Seed

Overwrite = Annotated[bool, Field(description="replace files that are there already")]


class CheckOptions(CameraOptions, ClipOptions):
    """Report which clips training would use, and why others cannot be."""

    examples: ClassVar[tuple[str, ...]] = ("--videos ./clips", "--videos ./clips --size 384x256 --frames 24")
    common: ClassVar[tuple[str, ...]] = "videos", "caption", "size", "frames", "fps", "output"

    first: Annotated[int, Field(ge=1, description="so many clips of the set, from its first on, are looked at")] = 256
    output: Annotated[Path, Field(description="folder for the contact sheet")] = Path("check")
    base: Annotated[
        Path | None,
        Field(description="SD1.5-family model, or auto, on whose VAE HiGen's factors are measured; none: they are not"),
    ] = None
    features: Annotated[
        Path, Field(description="folder of DINOv2 or CLIP for the appearance factor, or latent; with --base")
    ] = Path("latent")
    cache: Annotated[Path, Field(description="folder of encoded latents; with --base")] = Path("runs/cache")


class ToyOptions(Options):
    """Make a small Stable Diffusion checkpoint to learn and test with."""

    examples: ClassVar[tuple[str, ...]] = ("", "--output small.safetensors --unet small --steps 600")

    output: Annotated[Path, Field(description="the checkpoint to write; its contact sheet goes beside it")] = Path(
        "toy.safetensors"
    )
    steps: Annotated[int, Field(ge=0, description="training steps of the U-Net; 0 writes random weights")] = 2000
    autoencoder_steps: Annotated[int, Field(ge=0, description="training steps of the autoencoder")] = 1100
    overwrite: Overwrite = False
    unet: Annotated[Literal["small", "medium", "sd15"], Field(description="36.7, 44.3 or 111.5 M parameters")] = (
        "medium"
    )
    batch_size: Annotated[int, Field(ge=1, description="pictures in a training step of the U-Net")] = 16
    learning_rate: Annotated[float, Field(gt=0, description="highest learning rate of the U-Net")] = 3e-4
    seed: Seed = 0


class DemoOptions(Options):
    """Train on a few drawn clips and show what was learnt, on a machine with nothing but Python.

    Makes a small base model, ten clips of a motion, a motion file, and a clip without and with it. A second call goes
    on after the last part that was finished, and after the last save of the motion.
    """

    examples: ClassVar[tuple[str, ...]] = ("", "--motion orbit --output demo-orbit --base demo/base.safetensors")

    output: Annotated[Path, Field(description="folder for everything")] = Path("demo")
    motion: Annotated[Literal["swing", "grow", "orbit"], Field(description="what the drawn shapes do")] = "swing"
    base: Annotated[Path | None, Field(description="a base made before by `toy`; none: one is made now")] = None
    base_steps: Annotated[int, Field(ge=0, description="training steps of that base")] = 2000
    steps: Annotated[int, Field(ge=1, description="training steps of the motion")] = 1600
    seed: Seed = 0


class ConvertOptions(Options):
    """Make a motion file of another program's motion module, or the other way round.

    Reads AnimateDiff's modules for SD1.5 (.safetensors, .ckpt) and its motion LoRAs, folders of diffusers'
    MotionAdapter, and motion files; and HiGen's release (.pth), which is an image model as well: that becomes a file of
    its own. With --to motion-lora what `fewshot --over` learnt becomes a motion LoRA of AnimateDiff, without its memory
    and queries; a motion LoRA is written as ComfyUI reads it.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "--input mm_sd_v15_v2.ckpt --output mm_sd_v15_v2.safetensors",
        "--input motion.safetensors --to animatediff --output for_animatediff.safetensors",
        "--input motion.safetensors --to motion-adapter --output adapter",
        "--input turn.safetensors --to motion-lora --output turn_for_animatediff.safetensors",
        "--input turn.safetensors --merge zoom.safetensors:0.5 --rank 16 --output both.safetensors",
    )

    input: Annotated[Path, Field(description="motion module, folder of a MotionAdapter, motion file, HiGen's release")]
    to: Annotated[
        Literal["stillmotion", "animatediff", "motion-adapter", "motion-lora", "higen"],
        Field(description="form in which it is written"),
    ] = "stillmotion"
    output: Annotated[Path, Field(description="file to write; for motion-adapter a folder")]
    overwrite: Overwrite = False
    lora: Annotated[tuple[Path, ...], Field(description="AnimateDiff motion LoRAs to merge into it")] = ()
    lora_strength: Annotated[
        float, Field(ge=-10, le=10, description="factor of what they change; below 0: backwards")
    ] = 1.0
    merge: Annotated[
        tuple[str, ...],
        Field(description="further files with LoRAs to add to its own, each as FILE or FILE:WEIGHT; ranks add up"),
    ] = ()
    rank: Annotated[
        int | None, Field(ge=1, le=4096, description="rank that LoRAs are cut to by SVD; none: they stay as they are")
    ] = None
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
        if self.to == "motion-lora" and (self.lora or self.with_ or self.model):
            raise ValueError("--to motion-lora writes LoRAs alone: leave --lora, --with and --model out")
        if (self.merge or self.rank) and (self.to not in ("stillmotion", "motion-lora") or self.lora):
            raise ValueError("--merge and --rank are of LoRAs, for --to stillmotion or motion-lora, without --lora")
        if self.model and self.model in (self.output, self.with_):
            raise ValueError(f"--model is {self.model}, as another option is, and would replace it; name a new file")
        if self.model and self.to != "higen" and self.model.suffix != ".safetensors":
            raise ValueError(f"--model is {self.model}; the name of an image model ends in .safetensors")
        return self
