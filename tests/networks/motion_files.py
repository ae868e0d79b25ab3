"""Small motion files, with random numbers in every part."""

import safetensors.torch
import torch
from safetensors import safe_open
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.sites import Level, Structure
from torch import nn

SLIM = Structure((Level(32, (1,), (1, 1)),), middle=0, context=768)
EVERYTHING = InflationConfig(Temporal(heads=4), CrossFrames(heads=4), Recurrence(), Queries(rank=3))

GAMMA = "input_blocks.1.1.transformer_blocks.0.attn1.recurrence.mix.gamma"
WEIGHT = "input_blocks.1.1.attention.proj_out.weight"


def trained(config, dtype=torch.float32):
    made = Inflation(config, SLIM)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.to(dtype).state_dict()


def info_of(config, **more):
    return MotionInfo(
        config,
        SLIM,
        schedule="linear",
        prediction="v_prediction",
        frames=24,
        fps=12.5,
        width=456,
        height=256,
        captions=("a ball rolls", 'ein „Ball" — 球'),
        options={"steps": 300, "lr": 1e-4, "seed": None, "nested": {"sizes": [1, 2]}},
        versions={"torch": "2.11.0"},
        **more,
    )


def good_file(folder):
    """A motion file with every part."""
    path = folder / "motion.safetensors"
    write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    return path


def contents(path):
    """Its tensors and metadata, read without the code under test and not mapped, so that it can be overwritten."""
    with safe_open(path, "pt") as file:
        return safetensors.torch.load(path.read_bytes()), file.metadata()
