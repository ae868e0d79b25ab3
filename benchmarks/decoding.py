"""Reading 16 evenly spaced frames of each clip: one pass by time stamp, against OpenCV seeking to every frame.

    python benchmarks/decoding.py --videos DIR

Prints milliseconds of this process, which other load does not count into, and their ratio (medians of several rounds,
in turns), and how far their pixels differ.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from stillmotion.trainer.clips.find import Source, decode, find_clips

FRAMES = 16


def ours(path: Path, seconds: float) -> np.ndarray:
    return decode(Source(path, path.name), FRAMES / seconds, frames=FRAMES).frames


def seeking(path: Path, seconds: float) -> np.ndarray:
    """OpenCV, sent to the number of each frame by CAP_PROP_POS_FRAMES, as many data loaders do."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    frames = []
    for number in range(FRAMES):
        video.set(cv2.CAP_PROP_POS_FRAMES, int(number * seconds / FRAMES * rate + 0.01))
        frames.append(cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB))
    video.release()
    return np.stack(frames)


def milliseconds(read, path: Path, seconds: float) -> float:
    begin = time.process_time()
    read(path, seconds)
    return 1000 * (time.process_time() - begin)


def measure(source: Source, rounds: int) -> tuple[str, float, float, float]:
    seconds = decode(source, 8).seconds
    difference = np.abs(ours(source.path, seconds).astype(float) - seeking(source.path, seconds)).mean()
    pairs = [[milliseconds(read, source.path, seconds) for read in (ours, seeking)] for _ in range(rounds)]
    mine, theirs = (median(column) for column in zip(*pairs))
    return source.name, mine, theirs, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder with clips, or one clip")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    options = parser.parse_args()
    rows = [measure(source, options.rounds) for source in find_clips(options.videos, "")]
    width = max(len(name) for name, *_ in rows)
    print(f"{'clip':{width}}  one pass ms  seeking ms  ratio  pixels differ by (of 255)")
    for name, mine, theirs, difference in rows:
        print(f"{name:{width}}  {mine:11.0f}  {theirs:10.0f}  {theirs / mine:5.1f}  {difference:.2f}")
    mine, theirs = (np.mean([row[column] for row in rows]) for column in (1, 2))
    print(f"{'mean':{width}}  {mine:11.0f}  {theirs:10.0f}  {theirs / mine:5.1f}")


if __name__ == "__main__":
    main()
