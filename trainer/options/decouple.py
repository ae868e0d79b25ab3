"""The options of `decouple`: HiGen's prior and guidance, and what trains of the image model."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..config import Options
from .inflate import InflateOptions


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
    examples: ClassVar[tuple[str, ...]] = (
        "--videos ./clips --config trainer/presets/higen-16gb.toml",
        '--videos "shards/{000..123}.tar" --spatial lora --images ./pictures',
    )
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
