"""Measure how far seams between context windows stand out, and how far fusing the windows brings them down.

    python benchmarks/seams.py [--base base.safetensors --motion motion.safetensors] [--frames 64] [--seeds 3]

The first table is a toy whose windows each have an offset of their own, against its formula. The second is of clips
that a model samples in ComfyUI, at $COMFYUI_PATH or ~/comfy/ComfyUI: the largest difference of neighbouring
frames where windows meet, over the median of all, from the same noise.
"""

import argparse
import statistics
from itertools import pairwise
from pathlib import Path

import torch
from comfyui import load_comfyui
from stillmotion.samplers.windows import FUSES, fuse, windows_of

WAYS = [("flat", 0), ("flat", 2), ("trapezoid", 2), ("pyramid", 2), ("flat", 4), ("pyramid", 4)]


def frames_at_seams(windows):
    """Return the first of each pair of neighbouring frames of which not both are in the same windows alone."""
    return [frame for a, b in pairwise(windows) for frame in range(b.start - 1, a.stop)]


def seam_ratio(differences, windows):
    return (differences[frames_at_seams(windows)].max() / differences.median()).item()


def toy(name, overlap, window=16):
    """Fuse six windows of a slow motion, every second one 1 brighter: squared differences of neighbouring frames."""
    frames = window + 5 * (window - overlap)
    windows = windows_of(frames, window, overlap)
    motion = 0.005 * torch.arange(frames, dtype=torch.float64)
    predictions = [motion[list(w)] + i % 2 for i, w in enumerate(windows)]
    weights = [FUSES[name](w, frames, overlap) for w in windows]
    return fuse(predictions, windows, weights, frames).diff().square()


def print_toy():
    print("| fuse | overlap | seam, of that without overlap | formula |\n|---|---|---|---|")
    alone = toy("flat", 0).max()
    for name, overlap in WAYS:
        expected = 1 / (overlap + 1) ** 2 if name != "flat" else (1 / 4 if overlap else 1)
        print(f"| {name} | {overlap} | {toy(name, overlap).max() / alone:.4f} | {expected:.4f} |")


def load(base, motion):
    """Return MODEL with the motion, CLIP and VAE."""
    import comfy.sd
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import load_motion

    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(base), output_vae=True, output_clip=True)
    if motion is None:
        return model, clip, vae
    return attach(model, load_motion(motion), temporal=1.0, recurrence=1.0, queries=1.0), clip, vae


def sampled(model, clip, vae, options, seed):
    """Sample a clip; returns its pixels."""
    import comfy.sample

    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in (options.caption, ""))
    latent = torch.zeros(options.frames, 4, options.size // 8, options.size // 8)
    settings = options.steps, options.cfg, "ddim", "ddim_uniform", positive, negative, latent
    noise = comfy.sample.prepare_noise(latent, seed)
    return vae.decode(comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=seed))


def print_sampled(options):
    load_comfyui()
    from stillmotion.nodes.windowing import sampled_on_windows

    model, clip, vae = load(options.base, options.motion)
    print("\n| fuse | overlap | seam / median difference | of that without overlap |\n|---|---|---|---|")
    ratios = {}
    for name, overlap in WAYS:
        cut = sampled_on_windows(model, options.window, overlap, name)
        windows = windows_of(options.frames, options.window, overlap)
        for seed in range(options.seeds):
            pixels = sampled(cut, clip, vae, options, seed)
            differences = pixels.diff(dim=0).abs().mean(dim=(1, 2, 3))
            ratios.setdefault((name, overlap), []).append(seam_ratio(differences, windows))
        relative = statistics.median(a / b for a, b in zip(ratios[name, overlap], ratios["flat", 0]))
        print(f"| {name} | {overlap} | {statistics.median(ratios[name, overlap]):.2f} | {relative:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, help="a checkpoint; without it only the toy is measured")
    parser.add_argument("--motion", type=Path, help="a motion file made for it")
    parser.add_argument("--caption", default="a red circle on a blue background, swinging from side to side")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print_toy()
    if options.base:
        with torch.inference_mode():
            print_sampled(options)


if __name__ == "__main__":
    main()
