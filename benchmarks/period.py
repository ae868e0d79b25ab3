"""Measure whether a periodic motion keeps its period over a long clip: one pass of a model, or windows of it.

    python benchmarks/period.py --base toy.safetensors --motions one_pass.safetensors:0 short.safetensors:16 \
        --caption "a red circle on a blue background, going round in a circle"

Each motion file comes with the length of the windows that it is sampled on, 0 for none. Of every part of the clip that
is `--part` frames long the period is where the autocorrelation of its latents is highest. Prints its mean and spread
over the parts, and how high that autocorrelation is: 1 where a clip repeats itself exactly.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import DEVICE
from stillmotion.networks.clip import Clip
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.samplers.factors import mean_frame_difference, x_t_slice
from stillmotion.samplers.windows import flat, fuse, windows_of
from stillmotion.trainer.base.load import encode_captions, load_base
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import Sampling, sample_clip, starting_noise
from stillmotion.trainer.show.pictures import contact_sheet


def on_windows(model, window, overlap):
    """Return the model's prediction for a long clip, fused from those for its windows."""

    def predict(rows, timesteps, text, clip):
        windows = windows_of(clip.frames, window, overlap)
        weights = [flat(w, clip.frames, overlap) for w in windows]
        fused = []
        for clip_rows, times, texts in zip(*(x.split(clip.frames) for x in (rows, timesteps, text))):
            parts = [model(clip_rows[list(w)], times[list(w)], texts[list(w)], Clip(tuple(w))) for w in windows]
            fused.append(fuse(parts, windows, weights, clip.frames))
        return torch.cat(fused)

    return predict


def autocorrelation(latents):
    """Return that of a clip with lags of 0, 1, 2, … frames: 1 at 0; each over the frames that it leaves."""
    z = (latents - latents.mean(0)).flatten(1).double()
    gram = z @ z.T
    return torch.stack([gram.diagonal(lag).mean() for lag in range(len(z) // 2 + 1)]) / gram.diagonal().mean()


def period(latents, shortest=8):
    """Return the lag of the highest autocorrelation from `shortest` on (a parabola between frames) and its height."""
    curve = autocorrelation(latents)
    best = int(curve[shortest:-1].argmax()) + shortest
    before, top, after = curve[best - 1 : best + 2].tolist()
    bend = before - 2 * top + after
    shift = 0.5 * (before - after) / bend if bend else 0.0
    return best + min(0.5, max(-0.5, shift)), top  # further away where the curve falls all along: there is no peak


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--motions", nargs="+", required=True, metavar="FILE:WINDOW")
    parser.add_argument("--caption", required=True)
    parser.add_argument("--overlap", type=int, default=4, help="of windows, default 4")
    parser.add_argument("--frames", type=int, default=80, help="default 80")
    parser.add_argument("--part", type=int, default=40, help="frames of a part, default 40")
    parser.add_argument("--size", type=parse_size, default=(64, 64), help="width x height, default 64x64")
    parser.add_argument("--seeds", type=int, default=2, help="clips of each, default 2")
    parser.add_argument("--steps", type=int, default=15, help="default 15")
    parser.add_argument("--guidance", type=float, default=4, help="default 4")
    parser.add_argument("--output", type=Path, default=Path("runs/period"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    base = load_base(options.base)
    base.unet.to(DEVICE)
    base.text_encoder.to(DEVICE)
    text, no_caption = encode_captions(base, [options.caption, ""])
    sheet, slices = [], []
    print(f"{'':32}  period  spread  autocorrelation  difference")
    for given in options.motions:
        path, _, window = given.rpartition(":")
        model = load_motion(base, Path(path))
        model = on_windows(model, int(window), options.overlap) if int(window) else model
        how = Sampling(options.steps, options.guidance, schedule=read_motion_info(Path(path)).schedule)
        name, found = f"{Path(path).stem}, {f'windows of {window}' if int(window) else 'one pass'}", []
        for seed in range(options.seeds):
            noise = starting_noise(seed, options.frames, (options.size[0] // 8, options.size[1] // 8)).to(DEVICE)
            clip = sample_clip(model, text, no_caption, noise, how)
            starts = range(0, options.frames - options.part + 1, options.part // 4)
            found += [(*period(clip[s : s + options.part]), mean_frame_difference(clip)) for s in starts]
        periods, heights, differences = (np.array(column) for column in zip(*found))
        numbers = f"{periods.mean():6.2f}  {periods.std():6.2f}  {heights.mean():15.2f}  {differences.mean():10.3f}"
        print(f"{name:32}  {numbers}", flush=True)
        frames = decode_clip(base.vae, clip)
        sheet.append((name, frames[:: max(1, options.frames // 20)]))
        slices.append(x_t_slice(torch.from_numpy(frames)).numpy())
    contact_sheet(sheet, options.output / "sheet.png")
    Image.fromarray(np.concatenate([np.repeat(np.repeat(s, 6, 0), 4, 1) for s in slices], axis=1)).save(
        options.output / "x-t.png"
    )
    print(f"{options.output / 'sheet.png'}; {options.output / 'x-t.png'}")


if __name__ == "__main__":
    main()
