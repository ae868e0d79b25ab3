"""Show what motion files learnt: samples without and with them, from the same noise, beside the real clips.

    python benchmarks/motion_learnt.py --base toy.safetensors --videos ./clips --motions a.safetensors b.safetensors

A file with a recurrence is sampled once more with its gates shut (gamma 0): what that adds to the same weights.
Prints a row for each: difference of neighbouring frames in latents and in grey levels, optical flow, and how much two
frames eight apart differ for each difference of neighbours (independent frames: 1; motion that adds up: more).
Writes a contact sheet and x-t slices into --output.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from stillmotion.networks.motion_file import read_motion_file, write_motion_file
from stillmotion.samplers.factors import mean_frame_difference
from stillmotion.trainer.base.load import encode_frames, load_base
from stillmotion.trainer.clips.find import decode, find_clips, fit
from stillmotion.trainer.run.compare import Sample, sample_with
from stillmotion.trainer.show.pictures import contact_sheet, motion_amount

FRAMES = 16


def real_samples(videos: Path, base, size, fps) -> list[Sample]:
    samples = []
    for source in find_clips(videos):
        frames = fit(decode(source, fps, frames=FRAMES).frames, size)
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            samples.append(Sample(source.name, encode_frames(base.vae, pictures), frames))
    return samples


def numbers(samples: list[Sample]) -> list[float]:
    latents = [s.latents for s in samples]
    near = np.mean([mean_frame_difference(z) for z in latents])
    far = np.mean([(z[8:] - z[:-8]).abs().mean().item() for z in latents])
    motions = [motion_amount(s.frames) for s in samples]
    return [near, far / near, np.mean([m.difference for m in motions]), np.mean([m.flow for m in motions])]


def with_shut_gates(motion: Path, folder: Path) -> list[Path]:
    """Return the file, and where it has a recurrence a copy of it in `folder` whose gamma is 0 everywhere."""
    info, tensors = read_motion_file(motion)
    if not info.config.recurrence:
        return [motion]
    shut = {name: torch.zeros_like(t) if name.endswith(".gamma") else t for name, t in tensors.items()}
    write_motion_file(folder / f"{motion.stem}, gamma 0.safetensors", shut, info)
    return [motion, folder / f"{motion.stem}, gamma 0.safetensors"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--motions", type=Path, nargs="+", required=True)
    parser.add_argument("--caption", default="a man playing the guitar")
    parser.add_argument("--size", default="64x64", help="width x height, as in training")
    parser.add_argument("--fps", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=4, help="samples of each")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("runs/learnt"))
    options = parser.parse_args()
    size = tuple(map(int, options.size.split("x")))
    options.output.mkdir(parents=True, exist_ok=True)
    base = load_base(options.base)

    groups = {"real clips": real_samples(options.videos, base, size, options.fps)}
    motions = [m for motion in options.motions for m in with_shut_gates(motion, options.output)]
    for name, motion in [("base", None), *((m.stem, m) for m in motions)]:
        groups[name] = [
            sample_with(
                base, motion, name, options.caption, frames=FRAMES, size=size, seed=seed, guidance=options.guidance
            )
            for seed in range(options.seeds)
        ]
    print(f"{'':24} latent difference  8 apart / neighbours  grey difference  flow %")
    for name, samples in groups.items():
        near, ratio, grey, flow = numbers(samples)
        print(f"{name:24} {near:17.3f}  {ratio:20.2f}  {grey:15.1f}  {flow:6.2f}")
    rows = [(f"{name} {i}", s.frames) for name, samples in groups.items() for i, s in enumerate(samples[:2])]
    contact_sheet(rows, options.output / "sheet.png")
    slices = [np.repeat(np.repeat(samples[0].x_t_slice, 8, 0), 3, 1) for samples in groups.values()]
    Image.fromarray(np.concatenate(slices, axis=1)).save(options.output / "x-t.png")
    print(f"{options.output / 'sheet.png'}; {options.output / 'x-t.png'}: from left to right {', '.join(groups)}")


if __name__ == "__main__":
    main()
