"""Time drawing the noise of a long clip with each strategy, as a ratio to torch.randn of the same size.

    python benchmarks/noise.py [--frames 320] [--cells 64] [--rounds 15]

On the CPU, where noise is drawn (with OMP_NUM_THREADS=1, seconds are those of one thread).
"""

import argparse
from functools import partial

import torch
from side_by_side import measure, print_costs, print_header
from stillmotion.samplers.noise import STRATEGIES, draw_noise


def seeded():
    return torch.Generator().manual_seed(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=320, help="default 320")
    parser.add_argument("--cells", type=int, default=64, help="width and height of the latents, default 64")
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    options = parser.parse_args()
    shape = options.frames, 4, options.cells, options.cells
    ways = {"torch.randn": lambda: torch.randn(shape, generator=seeded())}
    ways |= {name: partial(lambda name: draw_noise(shape, seeded(), name, 0.5), name) for name in STRATEGIES}
    print(f"{torch.get_num_threads()} threads")
    print_header("torch.randn")
    label = f"{options.frames} frames of 4x{options.cells}x{options.cells}"
    print_costs(label, measure(ways, options.rounds, torch.device("cpu")), "torch.randn")


if __name__ == "__main__":
    main()
