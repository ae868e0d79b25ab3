"""What mitigating gradients cost at each step, beside the step of SD1.5's U-Net (random weights, both captions).

    python benchmarks/mitigating_gradient.py [--frames 24] [--cells 64] [--rows 1] [--rounds 5]

The U-Net runs `--rows` rows, 3.4 GB of weights in float32, and its time is multiplied up to 2 x frames rows: on a CPU a
whole step would take minutes. On a GPU take --rows 48, which is the step itself.
"""

import argparse
import time
from statistics import median

import torch
from diffusers import UNet2DConditionModel
from stillmotion.samplers.mitigating_gradient import Mitigation, mitigate_latents

SETTINGS = {"one-sided": Mitigation(), "symmetric": Mitigation(symmetric=True)}


def seconds(run, device):
    """CPU seconds of this process, which other load does not count into; on a GPU, seconds until it is done."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def unet_row(options):
    """Seconds that one row of SD1.5's U-Net takes."""
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(options.device).eval()
    sample = torch.randn(options.rows, 4, options.cells, options.cells, device=options.device)
    text = torch.randn(options.rows, 77, 768, device=options.device)

    def run():
        unet(sample, 500, text)

    run()
    return median(seconds(run, options.device) for _ in range(options.rounds)) / options.rows


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=24, help="default 24")
    parser.add_argument("--cells", type=int, default=64, help="width and height of the latent, default 64")
    parser.add_argument("--rows", type=int, default=1, help="rows of the U-Net that are timed, default 1")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    step = 2 * options.frames * unet_row(options)
    clip = torch.randn(options.frames, 4, options.cells, options.cells, device=options.device)
    times = f"{options.rows} rows timed, x {2 * options.frames / options.rows:g}"
    print(f"{options.frames} frames of 4x{options.cells}x{options.cells} on {options.device}")
    print(f"step of the U-Net  {1000 * step:10.1f} ms  ({times})")
    for name, how in SETTINGS.items():
        taken = [seconds(lambda: mitigate_latents(clip, 5.0, how), options.device) for _ in range(20)]  # noqa: B023
        print(f"{name:17}  {1000 * median(taken):10.1f} ms  {100 * median(taken) / step:.4f} % of it")


if __name__ == "__main__":
    main()
