"""Compare the trainer's host and diffusers' UNetMotionModel on the same weights: the clips, and what they cost.

    python benchmarks/motion_model.py [--width 320] [--frames 16 32 80] [--cells 16] [--rounds 3]
        [--checkpointing]

Two tables: a forward, and a training step (forward and backward; gradients of the motion modules, of the image model
alone those of its input). With --checkpointing its gradient checkpointing is as each offers it: ours of all layers,
diffusers' of all but the motion modules. SD1.5's layers with random weights; in one thread of a CPU, or on a GPU as the
trainer computes there: the image model in bfloat16, the motion modules in float32, mixed by autocast.
"""

import argparse
from functools import partial

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from random_weights import randomise
from side_by_side import DEVICE, measure, print_costs, print_header
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Resampling, Temporal
from stillmotion.networks.formats.motion_adapter import to_motion_adapter
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo
from stillmotion.networks.presets import lumiere
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from torch import nn

ANIMATEDIFF = InflationConfig(temporal=Temporal(norm_scope="clip", middle=True))
HALVED = InflationConfig(resampling=Resampling((0, 1, 2)))
REFERENCES = "the image model alone", "diffusers' UNetMotionModel"
ON_GPU = DEVICE.type == "cuda"


def random_unet(width):
    widths = (width, 2 * width, 4 * width, 4 * width)
    unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8)
    nn.Module.to(unet, DEVICE, torch.bfloat16 if ON_GPU else torch.float32)  # diffusers' own warns
    return randomise(unet.eval())


def random_inflation(config, structure):
    return randomise(Inflation(config, structure).to(DEVICE))


def in_diffusers(unet, inflation, frames):
    """Return a UNetMotionModel on the tensors of `unet`, not on copies."""
    info = MotionInfo(ANIMATEDIFF, structure_of(unet), frames=frames)
    config, tensors = to_motion_adapter(info, inflation.state_dict())
    with torch.device("meta"):
        image, motion = UNet2DConditionModel.from_config(unet.config), MotionAdapter.from_config(config)
        model = UNetMotionModel.from_unet2d(image, motion, load_weights=False)
    model.load_state_dict({**unet.state_dict(), **tensors}, assign=True)
    return model.eval().requires_grad_(False)


def forward_of(model, frames, cells):
    """Return a forward of one clip, called with no arguments, which gives `(frames, channels, height, width)`."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(frames, 4, cells, cells, generator=generator).to(DEVICE).requires_grad_()
    text = torch.randn(1, 77, 768, generator=generator).repeat(frames, 1, 1).to(DEVICE)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU)
    if isinstance(model, UNetMotionModel):
        return mixed(lambda: model(sample.transpose(0, 1)[None], 500, text).sample[0].transpose(0, 1))
    return mixed(lambda: model(sample, torch.full((frames,), 500, device=DEVICE), text, Clip.of(frames)))


def train(model, forward):
    """Take a step without its optimiser."""
    model.zero_grad(set_to_none=True)
    forward().float().square().mean().backward()


def trained(model, checkpointing):
    """Have gradients computed for the motion modules."""
    if isinstance(model, UNetMotionModel):
        model.train().freeze_unet2d_params()
        model.enable_gradient_checkpointing() if checkpointing else None
        return model
    model.checkpointing = checkpointing
    if model.inflation is not None:
        model.inflation.requires_grad_(True)
    return model


def step_of(model, frames, options):
    model = trained(model, options.checkpointing)
    return partial(train, model, forward_of(model, frames, options.cells))


def print_difference(theirs, ours, still, cells):
    theirs, ours, still = (forward_of(model, 7, cells)() for model in (theirs, ours, still))
    print(
        f"max abs difference of a clip: {(ours - theirs).abs().max():.1e}; of the clip without motion:"
        f" {(ours - still).abs().max():.2f}; largest value {ours.abs().max():.1f}"
    )


def models_of(unet, theirs, frames):
    """Return models by name; those that are ours share the tensors of `unet`."""
    structure = structure_of(unet)
    configs = {
        "AnimateDiff's blocks here": ANIMATEDIFF,
        "frames halved three times": HALVED,
        "Lumiere's space-time U-Net": lumiere(structure, frames),
    }
    ours = {name: InflatedUNet(unet, random_inflation(config, structure)) for name, config in configs.items()}
    for model in ours.values():
        model.inflation.requires_grad_(False)
    return dict(zip(REFERENCES, (InflatedUNet(unet), theirs))) | ours


def print_table(title, run_of, unet, theirs, options):
    """Print what `run_of(model, frames)` costs, a function of no arguments."""
    print(f"\n{title}:\n")
    print_header(*REFERENCES)
    for frames in options.frames:
        runs = {name: run_of(model, frames) for name, model in models_of(unet, theirs, frames).items()}
        print_costs(f"{frames} frames", measure(runs, options.rounds), *REFERENCES)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=320, help="channels of the finest level, default 320")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 80])
    parser.add_argument("--cells", type=int, default=16, help="width and height of the latent, default 16")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet = random_unet(options.width)
    same = random_inflation(ANIMATEDIFF, structure_of(unet))
    theirs = in_diffusers(unet, same, max(options.frames))
    with torch.no_grad():
        print_difference(theirs, InflatedUNet(unet, same), InflatedUNet(unet), options.cells)
        print_table("A forward", lambda model, frames: forward_of(model, frames, options.cells), unet, theirs, options)
    print_table("A training step", lambda model, frames: step_of(model, frames, options), unet, theirs, options)


if __name__ == "__main__":
    main()
