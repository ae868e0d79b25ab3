"""Train a space-time U-Net whose temporal down- and upsampling starts as the identity, beside one that starts as
PyTorch's convolutions do: the held-out loss at equal steps (Lumiere, Bar-Tal et al. 2024, arXiv 2401.12945, figure 12).

    python benchmarks/identity_init.py --base toy.safetensors --videos runs/drawn --steps 100

Prints the denoising loss on the same clips with the same noise.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.base.load import encode_captions, encode_frames, load_base
from stillmotion.trainer.clips.batches import TrainingClip, batch_for
from stillmotion.trainer.clips.cache import encode_clip
from stillmotion.trainer.clips.find import find_clips
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.options import InflateOptions
from stillmotion.trainer.run.architecture import inflation_config
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.held_out import fixed_noise_loss
from stillmotion.trainer.run.loop import update
from stillmotion.trainer.run.run import new_training, plan_of
from stillmotion.trainer.run.session import Session

HELD_OUT = 4


def as_pytorch_starts(inflation):
    """Have resampling start as convolutions that PyTorch made: what is stored is the difference from the identity."""
    for name, module in inflation.parts():
        if name.endswith(".resampling"):
            module.conv.reset_parameters()
            identity = torch.nn.init.dirac_(torch.empty_like(module.conv.weight))
            module.conv.weight.data -= identity
    return inflation


@torch.no_grad()
def training_clips(base, options):
    text = {}
    for source in find_clips(options.videos):
        latents = encode_clip(source, options.fps, options.size, base.vae, encode_frames)
        if source.caption not in text:
            text[source.caption] = encode_captions(base, [source.caption])[0]
        yield TrainingClip(source.name, source.caption, latents, text[source.caption])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100, help="default 100")
    parser.add_argument("--every", type=int, default=20, help="steps between measurements, default 20")
    parser.add_argument("--size", type=parse_size, default=(64, 64), help="width x height, default 64x64")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="default 5e-4")
    given = parser.parse_args()
    options = InflateOptions(
        **{name: getattr(given, name) for name in ("base", "videos", "steps", "size", "frames", "learning_rate")},
        warm_up=10,
        checkpointing=False,
        precision="fp32",
        ema=None,
    )
    base = load_base(options.base)
    clips = list(training_clips(base, options))
    with torch.no_grad():
        no_caption = encode_captions(base, [""])[0]
    print("step      " + "  ".join(f"{step:7}" for step in range(0, options.steps + 1, given.every)))
    for name, change in {"identity": lambda inflation: inflation, "PyTorch's": as_pytorch_starts}.items():
        session, structure = Session(options, Accelerator(), save=None), structure_of(base.unet)
        inflation = fresh_inflation(inflation_config(options, options.frames, structure), structure, seed=0)
        torch.manual_seed(0)
        training = new_training(session, base, change(inflation), plan_of(session, base), None)
        source = partial(batch_for, training.plan, clips[HELD_OUT:], no_caption, 1)
        losses = [fixed_noise_loss(training, clips[:HELD_OUT])]
        for step in range(1, options.steps + 1):
            update(training, source, step)
            if step % given.every == 0:
                losses.append(fixed_noise_loss(training, clips[:HELD_OUT]))
        print(f"{name:10}" + "  ".join(f"{loss:7.4f}" for loss in losses), flush=True)


if __name__ == "__main__":
    main()
