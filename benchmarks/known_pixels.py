"""Give a network with the part `condition` some pixels of clips that it never saw, and measure what it makes of them.

    python benchmarks/known_pixels.py --output runs/known-pixels

Draws clips of one shape that goes round in a circle, once in eight frames, from anywhere on it, and trains the part
`condition` and temporal convolutions on them, by `decouple --condition` without HiGen's prior, and the image model with
them: that is the one of closed_loop.py, whose latents are the mean colours of 8 x 8 pixels, and so narrow that frozen
it does not put through what is known (`--frozen` shows it: `condition` with AnimateDiff's blocks). What is
known of a clip of held-out words says all of it, so that there is one truth for each. Prints, with intervals over clips
and seeds of sampling: errors against the truth where pixels are made, for the condition, for the condition with known
cells put back at every step as samplers do with a noise mask, for the noise mask alone (the same file, told nothing),
and for repeating the nearest known frame, the control; how far what is known is kept before anything is put back; what
moves inside and outside of a cinemagraph's mask; and the step from last to first frame with and without `loop`. What is
there in --output is not made again, and a run that was ended goes on.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from closed_loop import BLOCKS, DEVICE, interval, make_base
from safetensors.torch import load_file
from stillmotion.networks.asked import Asked, Given
from stillmotion.samplers.conditions import cells_known, cinemagraph, condition, hole, key_frames, nearest_known
from stillmotion.samplers.schedules import alphas_cumprod
from stillmotion.samplers.windows import turn
from stillmotion.trainer.base.ldm_checkpoint import unet_from_ldm
from stillmotion.trainer.base.load import encode_captions, load_base
from stillmotion.trainer.clips.known import Pixels
from stillmotion.trainer.commands.condition import condition as train_condition
from stillmotion.trainer.commands.decouple import decouple
from stillmotion.trainer.losses.denoising import add_noise, velocity
from stillmotion.trainer.options import ConditionOptions, DecoupleOptions
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.install import NO
from stillmotion.trainer.run.sample import Sampling, sample_clip, starting_noise
from stillmotion.trainer.show.pictures import contact_sheet, write_mp4
from stillmotion.trainer.toy.drawing import draw, split_scenes, to_bytes

SIZE, FRAMES, FPS = (64, 64), 8, 8.0
CELLS = SIZE[0] // 8, SIZE[1] // 8


def orbit(scene, start):
    """Return frames of a shape that goes round once, (frames, 3, height, width) in -1 to 1."""
    phase = math.tau * (start + torch.arange(FRAMES) / FRAMES)
    centres = 0.5 + 0.16 * torch.stack([phase.sin(), phase.cos()], dim=1)
    return draw([scene] * FRAMES, centres, torch.full((FRAMES,), 0.27), SIZE)


def draw_set(folder, count):
    folder.mkdir(parents=True)
    random, (scenes, _) = torch.Generator().manual_seed(0), split_scenes()
    for number in range(count):
        scene = scenes[int(torch.randint(len(scenes), (), generator=random))]
        frames = to_bytes(orbit(scene, torch.rand((), generator=random)))
        write_mp4(frames, folder / f"{number:03}.mp4", FPS)
        (folder / f"{number:03}.txt").write_text(scene.caption, encoding="utf-8")


def train(options, base, clips, run):
    shared = {
        "videos": clips,
        "base": base,
        "output": run,
        "size": SIZE,
        "frames": FRAMES,
        "fps": FPS,
        "steps": options.steps,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warm_up": 100,
        "ema": 0.99,
        "weighting": "velocity",
        "checkpointing": False,
        "preview_every": options.steps,
        "save_every": 500,
        "held_out_every": options.steps,
        "guidance": 1.0,
        "resume": (run / "saves").is_dir(),
        "cache": options.output / "cache",
        "install": NO,
    }
    if options.frozen:
        train_condition(ConditionOptions(**shared, preset="animatediff"))
        return
    without = {"prior": False, "appearance": False, "image_share": 0}
    parts = {"condition": True, "spatial": "full", "spatial_lr_mult": 0.5, "blocks": BLOCKS}
    decouple(DecoupleOptions(**shared, **without, **parts))


def tasks(video):
    """Return what is known of a clip (frames, height, width, 3), by the name of the task."""
    middle = torch.zeros(FRAMES, *SIZE)
    middle[2:6, 16:48, 16:48] = 1
    return {
        "image to video": key_frames(video[:1], [0], FRAMES),
        "key frames": key_frames(video[[0, 4]], [0, 4], FRAMES),
        "inpaint": hole(video, middle),
        "outpaint": hole(video, (torch.arange(SIZE[1]) >= 40).float().expand(SIZE)),
    }


class Sampler:
    """Samples clips of the motion file, told of known pixels or not."""

    def __init__(self, base_folder, motion, steps):
        self.base = load_base(base_folder)
        unet = motion.with_stem(f"{motion.stem}_unet")
        if unet.is_file():
            self.base.unet = unet_from_ldm(load_file(unet)).to(DEVICE).eval()
        self.network = load_motion(self.base, motion).to(DEVICE).eval()
        self.how = Sampling(steps, 1.0, prediction="v_prediction")
        self.pixels = Pixels(self.base.vae, DEVICE)

    def clip(self, caption, seed, given, told=True, keep=False, loop=False):
        """Return a decoded clip, (frames, height, width, 3) in 0 to 1."""
        noise = starting_noise(seed, FRAMES, CELLS).to(DEVICE)
        model = self.network
        if told:
            value = torch.cat(condition(given, self.pixels.encode), 1)[None].to(DEVICE)
            model = partial(model, asked=Asked(condition=Given(value)))
        if keep:
            latents = self.pixels.encode(given.frames[nearest_known(given)]).to(DEVICE)
            model = keeping(model, latents, cells_known(given.known).to(DEVICE), noise)
        if loop:
            model = turning(model, self.how.steps)
        text = encode_captions(self.base, [caption])[0].to(DEVICE)
        latents = sample_clip(model, text, text, noise, self.how, progress=False)
        return self.pixels.decode(latents)


def keeping(model, latents, known, noise):
    """Return a model that sees known cells with their own noise at every step, and predicts their own velocity."""

    def predict(x, timesteps, *others):
        signal = alphas_cumprod()[timesteps[0].cpu()].to(x)
        x = torch.lerp(x, add_noise(latents, noise, signal), known)
        return torch.lerp(model(x, timesteps, *others), velocity(latents, noise, signal), known)

    return predict


def turning(model, steps):
    """Return a model for which every step of sampling begins with another frame, as the nodes do it for `loop`."""
    number = iter(range(steps))

    def predict(x, *others):
        first = turn(next(number), FRAMES)
        return model(x.roll(-first, 0), *others).roll(first, 0)

    return predict


def error(clip, truth, where):
    """Return PSNR in dB over pixels where a mask (frames, height, width) is 1."""
    squared = (clip - truth).square().mean(-1)
    return -10 * math.log10((squared * where).sum() / where.sum() + 1e-10)


def shown(name, what, values):
    print(f"{name:16} {what:52} {interval([torch.tensor([v]) for v in values], lambda rows: rows.mean().item())}")


def against_truth(sampler, videos, captions, seeds):
    """Print, for each task, PSNR of what is made, and of what is known before anything is put back."""
    truths = [sampler.pixels.decode(sampler.pixels.encode(video)) for video in videos]
    for task in tasks(videos[0]):
        made, kept = {}, {}
        for video, truth, caption in zip(videos, truths, captions):
            given = tasks(video)[task]
            where, repeated = (cells_known(given.known) == 0).float(), truth[nearest_known(given)]
            where = where[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)
            if task in ("inpaint", "outpaint"):
                whole = [0, 1, 6, 7] if task == "inpaint" else [0]
                repeated = truth[[min(whole, key=lambda w, f=f: abs(w - f)) for f in range(FRAMES)]]
            for seed in seeds:
                for way, how in (
                    ("condition", {}),
                    ("condition and noise mask", {"keep": True}),
                    ("noise mask alone", {"told": False, "keep": True}),
                ):
                    clip = sampler.clip(caption, seed, given, **how)
                    made.setdefault(way, []).append(error(clip, truth, where))
                    kept.setdefault(way, []).append(error(clip, truth, 1 - where))
            if task != "outpaint":
                made.setdefault("nearest known frame repeated", []).append(error(repeated, truth, where))
        for way, values in made.items():
            shown(task, f"made: {way}, dB", values)
        shown(task, "known, not put back: condition, dB", kept["condition"])


def cinemagraphs(sampler, videos, captions, seeds):
    """Print how much pixels change over time inside and outside of the mask of a still whose right half moves."""
    mask = (torch.arange(SIZE[1]) >= 32).float().expand(SIZE)
    changes = {"inside": [], "outside": [], "outside, put back": []}
    for video, caption in zip(videos, captions):
        given = cinemagraph(video[0], mask, FRAMES)
        for seed in seeds:
            clip = sampler.clip(caption, seed, given)
            spread = clip.std(0).mean(-1)
            changes["inside"].append(spread[mask > 0].mean().item())
            changes["outside"].append(spread[mask == 0].mean().item())
            put_back = torch.where(given.known[..., None] > 0, given.frames, clip)
            changes["outside, put back"].append(put_back.std(0).mean(-1)[mask == 0].mean().item())
    for where, values in changes.items():
        shown("cinemagraph", f"standard deviation over time {where}", values)


def loops(sampler, videos, captions, seeds):
    """Print the change from last to first frame over the median change, with nothing known and with a first frame."""
    for name, known in (("loop, no pixels", False), ("loop, first frame", True)):
        for loop in (False, True):
            seams = []
            for video, caption in zip(videos, captions):
                given = tasks(video)["image to video"]
                for seed in seeds:
                    clip = sampler.clip(caption, seed, given, told=known, loop=loop)
                    steps = (clip - clip.roll(1, 0)).abs().mean((1, 2, 3))
                    seams.append((steps[0] / steps[1:].median()).item())
            shown(name, f"last to first over the median, {'with' if loop else 'without'} loop", seams)


def sheet(sampler, videos, captions, path):
    """Write a truth and the clips made of it, in every task."""
    rows = []
    for video, caption in list(zip(videos, captions))[:2]:
        rows.append((f"truth\n{caption}", bytes_of(video)))
        for task, given in tasks(video).items():
            rows.append((task, bytes_of(sampler.clip(caption, 0, given))))
    contact_sheet(rows, path)


def bytes_of(clip):
    return to_bytes(2 * clip.permute(0, 3, 1, 2) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/known-pixels"))
    parser.add_argument("--base", type=Path, help="of closed_loop.py; default: made here")
    parser.add_argument("--clips", type=int, default=200, help="default 200")
    parser.add_argument("--base-steps", type=int, default=1500, help="default 1500")
    parser.add_argument("--steps", type=int, default=1500, help="of training, default 1500")
    parser.add_argument("--frozen", action="store_true", help="the image model stays as it is")
    parser.add_argument("--captions", type=int, default=8, help="held out, default 8")
    parser.add_argument("--seeds", type=int, default=3, help="of sampling, default 3")
    parser.add_argument("--sampling-steps", type=int, default=20)
    options = parser.parse_args()

    clips, base = options.output / "clips", options.base or options.output / "base"
    if not clips.is_dir():
        draw_set(clips, options.clips)
    if not base.is_dir():
        make_base(base, options.base_steps)
    run = options.output / "trained"
    motion = run / "trained.safetensors"
    if not motion.is_file():
        train(options, base, clips, run)
    scenes = split_scenes()[1][:: 42 // options.captions][: options.captions]
    videos = [(orbit(s, i / options.captions).permute(0, 2, 3, 1) + 1) / 2 for i, s in enumerate(scenes)]
    given = [scene.caption for scene in scenes]
    sampler = Sampler(base, motion, options.sampling_steps)
    for measure in (against_truth, cinemagraphs, loops):
        measure(sampler, videos, given, range(options.seeds))
    sheet(sampler, videos, given, options.output / "known_pixels.png")


if __name__ == "__main__":
    main()
