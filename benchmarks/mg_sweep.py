"""Sample with mitigating gradients of several strengths, with the limit and without: motion and jitter that is left.

    python benchmarks/mg_sweep.py --base toy.safetensors --motion guitar.safetensors --caption "a man with a guitar"

Clips from the same noise, by DDIM with guidance as in HARIVO. Writes a contact sheet and prints for each strength
    difference   of neighbouring latent frames, mean absolute: motion and flicker together
    jitter       second differences over first ones: 2 where frames alternate, 1.73 where they have nothing to do with
                 each other, towards 0 where they move evenly
    flow         mean optical flow, in percent of the width
    spread       standard deviation of the latents: it falls where clips blur, and rises where they burst
"""

import argparse
import math
from pathlib import Path

import torch
from stillmotion.networks.clip import Clip
from stillmotion.samplers.factors import mean_frame_difference
from stillmotion.samplers.mitigating_gradient import Mitigation, mitigate_latents
from stillmotion.samplers.schedules import cfg_at, sigma_at, sigmas_of
from stillmotion.trainer.base.load import encode_captions, load_base
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import ddim, guided, starting_noise
from stillmotion.trainer.show.pictures import contact_sheet, motion_amount

CASES = {"off": Mitigation(alpha=0)}
CASES |= {f"alpha {alpha}": Mitigation(alpha) for alpha in (20, 40, 150)}
CASES |= {f"alpha {alpha}, no limit": Mitigation(alpha, math.inf) for alpha in (20, 40, 150)}


def sample(model, text, noise, how, early, late, steps):
    """Return a clip, (frames, 4, height, width); `text` is the prompt and the empty one, (2, tokens, width)."""
    scheduler, x, frames = ddim(), noise, len(noise)
    scheduler.set_timesteps(steps)
    sigmas = sigmas_of(scheduler.alphas_cumprod)
    switch = sigma_at(0.3, sigmas)
    for timestep in scheduler.timesteps:
        sigma, rows = sigmas[timestep].item(), x.repeat(2, 1, 1, 1)
        times = timestep.to(x.device).expand(2 * frames)
        predicted = model(rows, times, text.repeat_interleave(frames, dim=0), Clip.of(frames))
        predicted = guided(predicted, frames, cfg_at(sigma, early, late, switch))
        in_k_space = x * math.sqrt(1 + sigma**2)
        denoised = mitigate_latents(in_k_space - sigma * predicted, sigma, how)
        x = scheduler.step((in_k_space - denoised) / sigma, timestep, x).prev_sample
    return x


def jitter(clip):
    first = clip.diff(dim=0)
    return (first.diff(dim=0).norm() / first[1:].norm()).item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--motion", type=Path, help="default: the base alone")
    parser.add_argument("--caption", default="")
    parser.add_argument("--size", type=parse_size, default=(64, 64), help="width x height, as in training")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--seeds", type=int, default=4, help="clips of each, default 4")
    parser.add_argument("--steps", type=int, default=25, help="default 25")
    parser.add_argument("--early", type=float, default=12.0, help="guidance in the first three tenths, default 12")
    parser.add_argument("--late", type=float, default=7.5, help="guidance after these, default 7.5")
    parser.add_argument("--output", type=Path, default=Path("runs/mg_sweep"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    base = load_base(options.base)
    model, text = load_motion(base, options.motion), encode_captions(base, [options.caption, ""])
    cells = options.size[0] // 8, options.size[1] // 8
    sheet = []
    print(f"{'':20}  difference  jitter  flow %  spread")
    for name, how in CASES.items():
        noises = [starting_noise(seed, options.frames, cells) for seed in range(options.seeds)]
        clips = [sample(model, text, noise, how, options.early, options.late, options.steps) for noise in noises]
        frames = [decode_clip(base.vae, clip) for clip in clips]
        flow = sum(motion_amount(f).flow for f in frames) / len(frames)
        difference, rough, spread = (
            sum(map(measure, clips)) / len(clips)
            for measure in (mean_frame_difference, jitter, lambda clip: clip.std().item())
        )
        print(f"{name:20}  {difference:10.3f}  {rough:6.2f}  {flow:6.2f}  {spread:6.2f}", flush=True)
        sheet.append((f"{name}\ndifference {difference:.3f}\njitter {rough:.2f}", frames[0]))
    contact_sheet(sheet, options.output / "sheet.png")
    print(options.output / "sheet.png")


if __name__ == "__main__":
    main()
