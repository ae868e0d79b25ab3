"""Time the reading of 16 evenly spaced frames of each clip: one pass by time stamp, OpenCV seeking to every frame.

    python benchmarks/decoding.py --videos DIR

Prints CPU seconds and their ratio, and how far their pixels differ.
"""

import argparse
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from side_by_side import measure
from stillmotion.trainer.clips.find import Source, decode, find_clips

FRAMES = 16


def one_pass(path: Path, seconds: float) -> np.ndarray:
    return decode(Source(path, path.name), FRAMES / seconds, frames=FRAMES).frames


def seeking(path: Path, seconds: float) -> np.ndarray:
    """Read with OpenCV, sent to the number of each frame by CAP_PROP_POS_FRAMES, as many data loaders do."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    frames = []
    for number in range(FRAMES):
        video.set(cv2.CAP_PROP_POS_FRAMES, int(number * seconds / FRAMES * rate + 0.01))
        frames.append(cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB))
    video.release()
    return np.stack(frames)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder with clips, or one clip")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    print("| clip | one pass, s | seeking, s | seeking / one pass | pixels differ by (of 255) |\n|---|---|---|---|---|")
    for source in find_clips(options.videos, ""):
        read = source.path, decode(source, 8).seconds
        difference = np.abs(one_pass(*read).astype(float) - seeking(*read)).mean()
        ways = {"one pass": partial(one_pass, *read), "seeking": partial(seeking, *read)}
        costs = measure(ways, options.rounds, torch.device("cpu"))
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*costs.ratios("seeking", "one pass"))
        times = f"{costs.seconds('one pass'):.3g} | {costs.seconds('seeking'):.3g}"
        print(f"| {source.name} | {times} | {ratio} | {difference:.2f} |", flush=True)


if __name__ == "__main__":
    main()
