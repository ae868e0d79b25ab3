"""Draw a set of captioned clips for `inflate`: shapes that swing, grow and orbit, in a folder.

    python benchmarks/drawn_set.py --output runs/drawn --clips 60 --frames 24

Every clip has another scene, none of those that are held out, and one of the three motions.
"""

import argparse
from pathlib import Path

import torch
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.show.pictures import write_mp4
from stillmotion.trainer.toy.drawing import MOTIONS, draw_clip, split_scenes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/drawn"))
    parser.add_argument("--clips", type=int, default=60, help="default 60")
    parser.add_argument("--frames", type=int, default=24, help="of each clip, default 24")
    parser.add_argument("--period", type=float, default=16, help="frames of one cycle, default 16")
    parser.add_argument("--motions", nargs="+", default=list(MOTIONS), help=f"default {' '.join(MOTIONS)}")
    parser.add_argument("--size", type=parse_size, default=(64, 64), help="width x height, default 64x64")
    parser.add_argument("--fps", type=float, default=8, help="default 8")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    scenes, _ = split_scenes()
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(0)).tolist()
    for number in range(options.clips):
        motion = options.motions[number % len(options.motions)]
        scene = scenes[order[number % len(order)]]
        frames, caption = draw_clip(scene, motion, options.frames, options.size[::-1], options.period)
        write_mp4(frames, options.output / f"{number:03}.mp4", options.fps)
        (options.output / f"{number:03}.txt").write_text(caption, encoding="utf-8")
    print(f"{options.clips} clips in {options.output}")


if __name__ == "__main__":
    main()
