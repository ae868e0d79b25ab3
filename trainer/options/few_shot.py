"""The options of `fewshot`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .common import COMMON, CameraOptions, TrainOptions


class FewShotOptions(CameraOptions, TrainOptions):
    """Learn one motion from a handful of clips.

    Writes one folder: the motion file, a workflow that uses it, options, log, previews and training checkpoints. A file
    called `save` or `save_quit` in that folder does what it says; Ctrl-C saves and stops; --resume goes on.
    """

    group: ClassVar[str] = "model"
    examples: ClassVar[tuple[str, ...]] = (
        '--videos ./clips --caption "a man playing the guitar"',
        "--videos ./clips --dry-run",
        '--videos ./pictures --camera zoom-in --caption "a photo"',
        "--videos ./clips --base sd15.safetensors --size 384x256 --steps 1000 --output runs/guitar",
        "--videos ./clips --over v3_sd15_mm.ckpt --steps 500 --output runs/guitar",
    )
    common: ClassVar[tuple[str, ...]] = (*COMMON, "over", "resume")
    renamed: ClassVar[dict[str, str]] = {"memory": "recurrence"}

    steps: Annotated[int, Field(ge=1, description="optimizer steps; the paper took up to 16000")] = 2000
    learning_rate: Annotated[
        float, Field(gt=0, le=1, description="highest learning rate of AdamW; the paper's was 3e-5")
    ] = 1e-4
    ema: Annotated[float | None, Field(ge=0, lt=1, description="EMA decay; EMA weights are exported; none: no EMA")] = (
        0.995
    )

    over: Annotated[
        Path | None,
        Field(
            description="motion model to learn on top of, which stays as it is: a motion file, an AnimateDiff module, a"
            " MotionAdapter's folder, or its name in ComfyUI; none: the image model alone"
        ),
    ] = None
    temporal_lora: Annotated[
        int | None,
        Field(ge=1, le=320, description="rank of LoRA on that model's attentions over frames; unset with --over: 16"),
    ] = None
    recurrence: Annotated[
        Literal["gated_scan", "paper_rnn", "none"],
        Field(description="recurrence in the self-attentions: gated scan, the paper's RNN as printed, or none"),
    ] = "gated_scan"
    queries: Annotated[
        Literal["lora", "full", "none"],
        Field(description="what trains of the query projections (to_q): LoRA, all, none"),
    ] = "lora"
    rank: Annotated[int, Field(ge=1, le=320, description="rank of that LoRA; with --queries lora")] = 16
    frame_attention: Annotated[
        bool,
        Field(
            description="attention over frames in every transformer block; unset with --over: only if that connects no"
            " frames"
        ),
    ] = True
    frame_heads: Annotated[int, Field(ge=1, description="its heads; with --frame-attention")] = 8
    temporal_blocks: Annotated[bool, Field(description="AnimateDiff's motion block after every unit as well")] = False
    first_frame: Annotated[
        Literal["noisy", "clean"],
        Field(
            description="clean: the first frame is given, and no part of the loss; the workflow goes on from an image"
        ),
    ] = "noisy"

    debias: Annotated[
        float, Field(ge=0, le=100, description="weight of the loss that sees frames relative to one of them; 0: off")
    ] = 0
    appearance: Annotated[
        Literal["none", "lora"],
        Field(description="lora: how the clips look goes into a LoRA of the image model, beside the motion file"),
    ] = "none"
    appearance_rank: Annotated[int, Field(ge=1, le=320, description="its rank; with --appearance lora")] = 16

    @model_validator(mode="after")
    def trains_something(self):
        if self.temporal_lora and self.over is None:
            raise ValueError("--temporal-lora changes a motion model that is there already: name it with --over")
        others = self.over or self.frame_attention or self.temporal_blocks  # of --over it is asked when it was read
        if self.queries == self.recurrence == "none" and not others:
            raise ValueError("nothing would train: leave one of --queries, --recurrence, --frame-attention on")
        return self
