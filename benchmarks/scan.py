"""Time the recurrence of the gated scan, in parallel against one frame after the other, forward and backward.

python benchmarks/scan.py [--rounds 7]
"""

import argparse
from functools import partial

import torch
from side_by_side import DEVICE, measure, print_costs, print_header
from stillmotion.networks.recurrent import scan_parallel, scan_sequential

WAYS = {"parallel": scan_parallel, "sequential": scan_sequential}
SIZES = [(1024, 320), (256, 640), (64, 1280)]
"""Pixels and channels of the attentions of SD1.5 at 256x256."""


def forward_and_backward(scan, decay, update):
    scan(decay, update).sum().backward()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 80], help="default 16 80")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--device", type=torch.device, default=DEVICE)
    options = parser.parse_args()
    print(f"on {options.device}, {torch.get_num_threads()} threads")
    print_header("parallel")
    for frames in options.frames:
        for pixels, channels in SIZES:
            shape = 1, frames, pixels, channels
            decay = torch.rand(shape, device=options.device, requires_grad=True)
            update = torch.randn(shape, device=options.device, requires_grad=True)
            ways = {name: partial(forward_and_backward, scan, decay, update) for name, scan in WAYS.items()}
            label = f"{frames} frames of {pixels} pixels, {channels} channels"
            print_costs(label, measure(ways, options.rounds, options.device), "parallel")


if __name__ == "__main__":
    main()
