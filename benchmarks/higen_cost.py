"""Compare a U-Net with HiGen's blocks over time with the same one that has its prior and both kinds of guidance too.

    python benchmarks/higen_cost.py [--width 320] [--frames 16] [--cells 16] [--rounds 8]

Counts the operations of a forward of one clip that is asked for a still, motion and a look, then prints one table: that
forward, and a training step of it (forward and backward, gradients of what is added). SD1.5's layers with random
weights; in one thread of a CPU, or on a GPU in bfloat16.
"""

import argparse
from functools import partial

import torch
from motion_model import DEVICE, ON_GPU, random_inflation, random_unet
from side_by_side import measure, print_costs, print_header
from stillmotion.networks.asked import NOTHING
from stillmotion.networks.clip import Clip
from stillmotion.networks.presets import higen, with_guidance
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.run.two_passes import asked_for
from torch.utils.flop_counter import FlopCounterMode

PLAIN, WHOLE = "HiGen's blocks over time", "with prior and guidance"


def forward_of(model, frames, cells, asked):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(frames, 4, cells, cells, generator=generator).to(DEVICE)
    text = torch.randn(1, 77, 768, generator=generator).repeat(frames, 1, 1).to(DEVICE)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU)
    return mixed(lambda: model(sample, torch.full((frames,), 500, device=DEVICE), text, Clip.of(frames), None, asked))


def train(model, forward):
    model.zero_grad(set_to_none=True)
    forward().float().square().mean().backward()


@torch.no_grad()
def count_operations(forwards):
    counted = {}
    for name, forward in forwards.items():
        with FlopCounterMode(display=False) as counter:
            forward()
        counted[name] = counter.get_total_flops()
    print(f"operations of a forward: {counted[WHOLE] / counted[PLAIN] - 1:.4%} more with prior and guidance")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=320, help="channels of the finest level; SD1.5 has 320")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--cells", type=int, default=16, help="height and width of the latents")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet, still = random_unet(options.width), torch.randn(4, options.cells, options.cells, device=DEVICE)
    structure, frames = structure_of(unet), options.frames
    blocks = higen(structure, frames)
    asked = {PLAIN: NOTHING, WHOLE: asked_for(still, 500, 0.5, frames)}
    models = {
        name: InflatedUNet(unet, random_inflation(config, structure))
        for name, config in ((PLAIN, blocks), (WHOLE, with_guidance(blocks, frames)))
    }
    forwards = {name: forward_of(model, frames, options.cells, asked[name]) for name, model in models.items()}
    count_operations(forwards)
    print_header(PLAIN)
    with torch.no_grad():
        print_costs("forward", measure(forwards, options.rounds), PLAIN)
    steps = {name: partial(train, model, forwards[name]) for name, model in models.items()}
    print_costs("training step", measure(steps, options.rounds), PLAIN)
    for name, model in models.items():
        print(f"{name}: {sum(p.numel() for p in model.inflation.parameters()) / 1e6:.2f} M parameters trained")


if __name__ == "__main__":
    main()
