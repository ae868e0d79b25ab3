"""Time mitigating gradients at each step, beside the step of SD1.5's U-Net (random weights, both prompts).

    python benchmarks/mitigating_gradient.py [--frames 24] [--cells 64] [--rows 1] [--rounds 5]

The U-Net runs `--rows` rows, 3.4 GB of weights in float32, and its time is multiplied up to 2 x frames rows: on a CPU a
whole step would take minutes. On a GPU take --rows 48, which is the step itself.
"""

import argparse
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from side_by_side import DEVICE, measure
from stillmotion.samplers.mitigating_gradient import Mitigation, mitigate_latents

SETTINGS = {"one-sided": Mitigation(), "symmetric": Mitigation(symmetric=True)}


def unet_rows(options):
    """Return a forward of some rows of SD1.5's U-Net."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(options.device).eval()
    sample = torch.randn(options.rows, 4, options.cells, options.cells, device=options.device)
    return partial(unet, sample, 500, torch.randn(options.rows, 77, 768, device=options.device))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=24, help="default 24")
    parser.add_argument("--cells", type=int, default=64, help="width and height of the latents, default 64")
    parser.add_argument("--rows", type=int, default=1, help="rows of the U-Net that are timed, default 1")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--device", type=torch.device, default=DEVICE)
    options = parser.parse_args()
    clip = torch.randn(options.frames, 4, options.cells, options.cells, device=options.device)
    ways = {"U-Net": unet_rows(options)}
    ways |= {name: partial(mitigate_latents, clip, 5.0, how) for name, how in SETTINGS.items()}
    costs, times = measure(ways, options.rounds, options.device), 2 * options.frames / options.rows
    print(f"{options.frames} frames of 4x{options.cells}x{options.cells} on {options.device}")
    print(f"step of the U-Net  {1000 * times * costs.seconds('U-Net'):10.1f} ms  ({options.rows} rows, x {times:g})")
    for name in SETTINGS:
        share = 100 * costs.ratios(name, "U-Net")[0] / times
        print(f"{name:17}  {1000 * costs.seconds(name):10.1f} ms  {share:.4f} % of it")


if __name__ == "__main__":
    main()
