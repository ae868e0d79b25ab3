"""Draw clips that move well and the same clips with faults, a folder of each: what `evaluate` shall tell apart.

    python benchmarks/faults.py --output runs/faults --clips 8
    python -m trainer evaluate --videos runs/faults/moving "runs/faults/panned still" runs/faults/frozen

Frames are PNGs, so that nothing but the fault changes them. Clips of one number are made of each other.
"""

import argparse
from pathlib import Path

from PIL import Image
from stillmotion.trainer.toy.faults import FAULTS, moving_clip
from torch import Generator


def write(frames, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:02}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/faults"))
    parser.add_argument("--clips", type=int, default=8, help="of each kind, default 8")
    parser.add_argument("--frames", type=int, default=16, help="of each clip, default 16")
    options = parser.parse_args()
    for number in range(options.clips):
        generator = Generator().manual_seed(number)
        clip = moving_clip(generator, options.frames)
        write(clip, options.output / "moving" / f"clip {number}")
        for name, fault in FAULTS.items():
            write(fault(clip, generator), options.output / name / f"clip {number}")
    print(options.output)


if __name__ == "__main__":
    main()
