"""Sample clips from each kind of starting noise: how sharp their frames are, and how much these differ.

    python benchmarks/noise_sharpness.py --base toy.safetensors --motion guitar.safetensors --caption "a man"

Prints a row for each strategy, with the variance preserved and as printed: variance of the noise in the last frame,
variance of the Laplacian of the frames' grey levels relative to iid (below 1: softer pictures), and the difference of
neighbouring frames in latents and in grey levels. Writes a contact sheet into --output.
"""

import argparse
import itertools
from pathlib import Path

import cv2
import numpy as np
import torch
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.samplers.factors import mean_frame_difference
from stillmotion.samplers.noise import draw_noise
from stillmotion.trainer.base.load import encode_captions, load_base
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import Sampling, sample_clip
from stillmotion.trainer.show.pictures import contact_sheet, motion_amount

KINDS = [
    ("iid", 0.0, False),
    *itertools.product(["shared", "autoregressive"], [0.2, 0.5], [False, True]),
    *itertools.product(["mixed", "progressive"], [0.5, 1.0], [False]),
]
"""Strategy, share, and whether as printed."""


def name_of(kind):
    strategy, share, printed = kind
    return f"{strategy} {share:g}{' as printed' if printed else ''}"


def sharpness(frames) -> float:
    """Return the mean variance of the Laplacian of grey levels, the usual measure of focus."""
    return float(np.mean([cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for f in frames]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--motion", type=Path, required=True)
    parser.add_argument("--caption", required=True)
    parser.add_argument("--seeds", type=int, default=4, help="clips of each kind")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("runs/noise"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    info, base = read_motion_info(options.motion), load_base(options.base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base.unet.to(device)
    model = load_motion(base, options.motion)
    captions = encode_captions(base, [options.caption, ""]).to(device)
    shape = info.frames, 4, info.height // 8, info.width // 8

    print(f"{'':28} noise variance  sharpness / iid  latent difference  grey difference")
    how = Sampling(options.steps, options.guidance, schedule=info.schedule)
    rows, of_iid = [], None
    for strategy, share, printed in KINDS:
        numbers = []
        for seed in range(options.seeds):
            noise = draw_noise(shape, torch.Generator().manual_seed(seed), strategy, share, printed=printed)
            latents = sample_clip(model, *captions, noise.to(device), how)
            frames = decode_clip(base.vae, latents)
            moved = mean_frame_difference(latents), motion_amount(frames).difference
            numbers.append([noise[-1].var().item(), sharpness(frames), *moved])
            if seed == 0:
                rows.append((name_of((strategy, share, printed)), frames))
        variance, sharp, near, grey = np.mean(numbers, axis=0)
        of_iid = of_iid or sharp
        print(f"{rows[-1][0]:28} {variance:14.3f}  {sharp / of_iid:15.2f}  {near:17.3f}  {grey:15.1f}", flush=True)
    contact_sheet(rows, options.output / "sheet.png")


if __name__ == "__main__":
    main()
