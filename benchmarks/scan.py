"""The recurrence of the gated memory: a parallel scan against one frame after the other, forward and backward.

    python benchmarks/scan.py

Prints milliseconds (medians of several rounds, in turns) and the ratio sequential / parallel.
"""

import argparse
import time
from statistics import median

import torch
from stillmotion.networks.recurrent import scan_parallel, scan_sequential

SIZES = [(1024, 320), (256, 640), (64, 1280)]
"""Pixels and channels of the attentions of SD1.5 at 256x256."""


def seconds(scan, decay, update):
    """CPU seconds of this process, which other load does not count into; on a GPU, seconds until it is done."""
    on_gpu = decay.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    begin = clock()
    scan(decay, update).sum().backward()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - begin


def measure(frames, pixels, channels, rounds, device):
    decay = torch.rand(1, frames, pixels, channels, device=device, requires_grad=True)
    update = torch.randn(1, frames, pixels, channels, device=device, requires_grad=True)
    scans = scan_sequential, scan_parallel
    taken = [[seconds(scan, decay, update) for scan in scans] for _ in range(rounds + 1)][1:]
    return [1000 * median(column) for column in zip(*taken)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"on {options.device}, {torch.get_num_threads()} threads")
    print("frames  pixels  channels  sequential ms  parallel ms  ratio")
    for frames in (16, 80):
        for pixels, channels in SIZES:
            sequential, parallel = measure(frames, pixels, channels, options.rounds, options.device)
            ratio = sequential / parallel
            print(f"{frames:6}  {pixels:6}  {channels:8}  {sequential:13.1f}  {parallel:11.1f}  {ratio:5.2f}")


if __name__ == "__main__":
    main()
