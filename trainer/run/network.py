"""The network that trains: the frozen image model, what is below what is learnt, and what is learnt."""

from __future__ import annotations

import torch
from torch import nn

from ...networks.inflation import Inflation
from ..base.host import InflatedUNet
from ..base.load import Base
from ..options import FewShotOptions, SpatialOptions, TrainOptions

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def network_for(options: TrainOptions, base: Base, inflation: Inflation) -> InflatedUNet:
    """Return the frozen U-Net in the type it computes in, with what trains, in float32."""
    spatial = spatial_of(options)
    if options.precision != "fp32" and spatial.get("spatial") != "full":
        nn.Module.to(base.unet, TYPES[options.precision])  # diffusers' own warns of layers that are not there
    ground = frozen_ground(options, base)
    checkpointing, seed = options.checkpointing, options.seed
    return InflatedUNet(base.unet, inflation, ground=ground, checkpointing=checkpointing, seed=seed, **spatial)


def frozen_ground(options: TrainOptions, base: Base) -> Inflation | None:
    """Return the motion model on a base in the type it computes in, None where there is none."""
    if base.ground is None:
        return None
    return base.ground.inflation.to(TYPES[options.precision])


def spatial_of(options: TrainOptions) -> dict:
    """Return what trains of the image model, by the options of a command that has such."""
    if isinstance(options, FewShotOptions) and options.appearance == "lora":
        return {"appearance": options.appearance_rank}
    if not isinstance(options, SpatialOptions):
        return {}
    return {"spatial": options.spatial, "rank": options.spatial_rank}
