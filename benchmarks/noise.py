"""Drawing the noise of a long clip with each strategy, as a ratio to torch.randn of the same size.

    python benchmarks/noise.py [--frames 320] [--cells 64] [--rounds 15]

CPU milliseconds of this process, which other load does not count into (with OMP_NUM_THREADS=1, those of one thread).
"""

import argparse
import statistics
import time

import torch
from stillmotion.samplers.noise import STRATEGIES, draw_noise


def seconds(draw):
    began = time.process_time()
    draw()
    return time.process_time() - began


def measure(shape, rounds):
    """Seconds of each way to draw, one list for each round, all ways in turn."""
    ways = {"torch.randn": lambda: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    for name in STRATEGIES:
        ways[name] = lambda name=name: draw_noise(shape, torch.Generator().manual_seed(0), name, 0.5)
    return [{name: seconds(draw) for name, draw in ways.items()} for _ in range(rounds + 1)][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=320)
    parser.add_argument("--cells", type=int, default=64, help="width and height of the latent")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rounds = measure((options.frames, 4, options.cells, options.cells), options.rounds)
    print(f"{options.frames} frames of 4x{options.cells}x{options.cells}, {torch.get_num_threads()} threads")
    print("strategy             ms  / torch.randn      range")
    for name in rounds[0]:
        ratios = sorted(r[name] / r["torch.randn"] for r in rounds)
        ms = 1000 * statistics.median(r[name] for r in rounds)
        print(f"{name:14}  {ms:7.1f}  {statistics.median(ratios):13.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
