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
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.samplers.factors import mean_frame_difference
from stillmotion.samplers.mitigating_gradient import Mitigation
from stillmotion.samplers.smoothness import jitter
from stillmotion.trainer.base.load import encode_captions, load_base
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import Sampling, sample_clip, starting_noise
from stillmotion.trainer.show.pictures import contact_sheet, motion_amount

CASES = {"off": Mitigation(alpha=0)}
CASES |= {f"alpha {alpha}": Mitigation(alpha) for alpha in (20, 40, 150)}
CASES |= {f"alpha {alpha}, no limit": Mitigation(alpha, math.inf) for alpha in (20, 40, 150)}


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
    parser.add_argument(
        "--early", type=float, default=12.0, help="CFG scale in the first 30 %% of the schedule, default 12"
    )
    parser.add_argument("--late", type=float, default=7.5, help="CFG scale after it, default 7.5")
    parser.add_argument("--output", type=Path, default=Path("runs/mg_sweep"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    base = load_base(options.base)
    model, text = load_motion(base, options.motion), encode_captions(base, [options.caption, ""])
    schedule = read_motion_info(options.motion).schedule if options.motion else "scaled_linear"
    cells = options.size[0] // 8, options.size[1] // 8
    sheet = []
    print(f"{'':20}  difference  jitter  flow %  spread")
    for name, how in CASES.items():
        noises = [starting_noise(seed, options.frames, cells) for seed in range(options.seeds)]
        sampling = Sampling(options.steps, options.late, options.early, how, schedule)
        clips = [sample_clip(model, *text, noise, sampling, progress=False) for noise in noises]
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
