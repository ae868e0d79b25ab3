"""Ask a network that `decouple` trained for motion and change of look, and measure what it makes of that.

    python benchmarks/closed_loop.py --output runs/closed-loop

Draws clips of one shape that swings so far in some direction and changes its colour to some degree, each for itself
(rank correlation of the two factors over clips: 0.09), trains a small image model that predicts the velocity on
pictures of them, then `decouple --spatial full` twice on the clips: as it is, and with the factors of each clip given
to another one (the control, which can learn nothing from them). The autoencoder is not trained: a latent is the mean
colour of 8 x 8 pixels. Samples clips of held-out captions on a grid of both factors, the same noise for all, and prints
Spearman's rank correlations of what was asked with what is measured, with intervals over captions and seeds. Then the
prior: how near the middle frame is to the still that was given, to another still, and what the autoencoder alone loses.
Then clips with and without the prior, and with and without factors. What is there in --output is not made again, and a
run that was ended goes on.
"""

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from side_by_side import DEVICE
from stillmotion.networks.asked import NOTHING, Given
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.samplers.factors import appearance_factor, appearance_similarity, latent_features, motion_factors
from stillmotion.samplers.schedules import alphas_cumprod
from stillmotion.trainer.base.ldm_checkpoint import unet_from_ldm
from stillmotion.trainer.base.load import Base, encode_captions, encode_frames, load_base
from stillmotion.trainer.base.tokenizer import clip_tokenizer
from stillmotion.trainer.clips.cache import to_network
from stillmotion.trainer.commands.decouple import decouple
from stillmotion.trainer.losses.decoupling import Decoupling, measured
from stillmotion.trainer.losses.denoising import add_noise, velocity
from stillmotion.trainer.options import DecoupleOptions
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.install import NO
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import Sampling, sample_clip, starting_noise
from stillmotion.trainer.run.two_passes import asked_for, sample_still
from stillmotion.trainer.show.pictures import contact_sheet, write_mp4
from stillmotion.trainer.toy.drawing import COLOURS, draw, random_pictures, split_scenes, to_bytes
from stillmotion.trainer.toy.judge import accuracy
from stillmotion.trainer.toy.parts import new_text_encoder, silence_branches
from stillmotion.trainer.toy.training import sample_pictures, warm_cosine
from torch.nn.functional import mse_loss
from tqdm import trange

SIZE, FRAMES, FPS = (64, 64), 6, 8.0
FARTHEST, PERIOD = 0.2, 5  # of the width; the last frame is where the first one was
WIDTHS, PICTURES = (64, 128), 4000
TOKENS = 16  # captions are short, and every frame attends to all of 77
BLOCKS = ("convolution",) * 2
SPREAD = 3.0  # latents of the darkest and the brightest colour are so far apart


def varied_clip(scene, other, radius, far, angle, phase, change):
    """Return frames of a shape that swings about the middle while it takes on the colour `other`."""
    way = far * torch.sin(math.tau * (phase + torch.arange(FRAMES) / PERIOD))
    centres = 0.5 + way[:, None] * torch.tensor([math.sin(angle), math.cos(angle)])
    radii = torch.full((FRAMES,), radius)
    ends = [draw([scene._replace(colour=colour)] * FRAMES, centres, radii, SIZE) for colour in (scene.colour, other)]
    share = change * torch.linspace(0, 1, FRAMES).view(-1, 1, 1, 1)
    return to_bytes(torch.lerp(*ends, share))


def draw_set(folder, count, radius):
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    scenes, _ = split_scenes()
    for number in range(count):
        scene = scenes[int(torch.randint(len(scenes), (), generator=random))]
        others = [colour for colour in COLOURS if colour not in (scene.colour, scene.ground)]
        other = others[int(torch.randint(len(others), (), generator=random))]
        far, angle, phase, change = torch.rand(4, generator=random).tolist()
        clip = varied_clip(scene, other, radius, FARTHEST * far, math.tau * angle, phase, change)
        write_mp4(clip, folder / f"{number:03}.mp4", FPS)
        (folder / f"{number:03}.txt").write_text(scene.caption, encoding="utf-8")


@torch.no_grad()
def colour_autoencoder():
    """Return an autoencoder whose latents are the mean colour of each cell of 8 x 8 pixels, and their mean."""
    four = {"encoder_block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4}
    none = {"num_encoder_blocks": (0,) * 4, "num_decoder_blocks": (0,) * 4}
    vae = AutoencoderTiny(**four, **none)
    for layer in filter(lambda layer: isinstance(layer, torch.nn.Conv2d), vae.modules()):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
        of_grey = torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)])
        colours = of_grey if layer.in_channels == 3 else torch.eye(layer.out_channels, layer.in_channels)
        layer.weight[:, :, 1, 1] = colours
        if layer.stride == (2, 2):
            layer.weight[:, :, 1:, 1:] = colours[..., None, None] / 4
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    last.weight.mul_(SPREAD)
    last.bias.fill_(-SPREAD / 2)  # [0, 1] to [-1.5, 1.5], where the decoder's tanh is nearly straight
    first.weight.div_(SPREAD)
    first.bias.fill_(0.5)
    return vae


def make_base(folder, steps):
    """Train a narrow U-Net on pictures of the captions, and write it as a diffusers folder."""
    torch.manual_seed(0)
    text_encoder = new_text_encoder(torch.Generator().manual_seed(0))
    unet = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * len(WIDTHS),
        up_block_types=["CrossAttnUpBlock2D"] * len(WIDTHS),
        cross_attention_dim=768,
        attention_head_dim=8,
    ).to(DEVICE)
    silence_branches(unet)
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = TOKENS
    parts = unet, text_encoder.to(DEVICE), tokenizer, colour_autoencoder().to(DEVICE)
    base = Base(*parts, prediction="v_prediction")
    train_unet(base, steps)
    print("the image model draws, of captions it never saw:", drawn_right(base))
    for name, part in (("unet", base.unet), ("vae", base.vae), ("text_encoder", base.text_encoder)):
        part.cpu().save_pretrained(folder / name)
    base.tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction").save_pretrained(folder / "scheduler")


def drawn_right(base):
    """Return how often colour, shape and ground of held-out captions are right."""
    _, scenes = split_scenes()
    pictures = sample_pictures(base, [scene.caption for scene in scenes], seed=0, guidance=1.0)
    return accuracy(pictures.cpu(), scenes)


def train_unet(base, steps):
    """Train on so many pictures, encoded once."""
    random, (scenes, _) = torch.Generator().manual_seed(1), split_scenes()
    pictures, chosen = random_pictures(scenes, PICTURES, SIZE, random, spread=0.5)
    with torch.no_grad():
        latents = torch.cat([encode_frames(base.vae, part.to(DEVICE)) for part in pictures.split(32)])
        texts = torch.cat([encode_captions(base, [caption]) for caption in ["", *(s.caption for s in scenes)]])
    optimizer = torch.optim.AdamW(base.unet.train().parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, steps))
    for _ in trange(steps, desc="base"):
        batch = torch.randint(PICTURES, (32,), generator=random)
        caption = (chosen[batch] + 1) * (torch.rand(32, generator=random) >= 0.1)
        loss = velocity_loss(base.unet, latents[batch], texts[caption.to(DEVICE)], random)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(base.unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def velocity_loss(unet, latents, text, random):
    """Return the squared error of the predicted velocity: the noise alone says too little of colours where there is
    hardly anything else."""
    noise = torch.randn(latents.shape, generator=random).to(latents)
    times = torch.randint(1000, (len(latents),), generator=random).to(latents.device)
    signal = alphas_cumprod().to(latents.device)[times]
    predicted = unet(add_noise(latents, noise, signal), times, text).sample
    return mse_loss(predicted, velocity(latents, noise, signal))


def of_another(batch):
    """Ask each clip of a batch for the factors of the one before it: nothing can be learnt from them."""
    asked = measured(batch)
    roll = lambda given: Given(given.value.roll(1, 0))  # noqa: E731
    return replace(asked, motion=roll(asked.motion), similarity=roll(asked.similarity))


def train(options, base, clips, run, measure, **others):
    chosen = DecoupleOptions(
        videos=clips,
        base=base,
        output=run,
        size=SIZE,
        frames=FRAMES,
        fps=FPS,
        steps=options.steps,
        batch_size=4,
        blocks=BLOCKS,
        learning_rate=1e-3,
        warm_up=100,
        ema=0.99,
        weighting="velocity",
        spatial="full",
        spatial_lr_mult=0.5,
        image_share=0,
        checkpointing=False,
        preview_every=None,
        save_every=500,
        held_out_every=options.steps,
        guidance=options.guidance,
        seed=options.train_seed,
        resume=(run / "saves").is_dir(),
        cache=options.output / "cache",
        install=NO,
        **others,
    )
    decouple(chosen, Decoupling(measure=measure))


def factors_of(latents):
    """Return motion and appearance factor of one clip."""
    similarity = appearance_similarity(latent_features(latents))
    return motion_factors(latents).mean().item(), appearance_factor(similarity).item()


def ranks(values):
    """Return ranks from 0, equal values having the mean of theirs."""
    below, equal = values[:, None] > values[None], values[:, None] == values[None]
    return below.double().sum(1) + (equal.double().sum(1) - 1) / 2


def spearman(a, b):
    pair = torch.stack([ranks(a), ranks(b)])
    return torch.corrcoef(pair)[0, 1].item()


def interval(groups, statistic, draws=1000):
    """Return a statistic of all groups, and its 95 % interval over groups drawn anew."""
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        chosen = torch.randint(len(groups), (len(groups),), generator=random)
        found.append(statistic(torch.cat([groups[i] for i in chosen])))
    low, high = torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{statistic(torch.cat(groups)):+.2f} [{low:+.2f}, {high:+.2f}]"


def grid(ranges, count=5):
    """Return values between the 5th and the 95th percentile of either factor."""
    return [torch.linspace(ranges[name][0], ranges[name][2], count).tolist() for name in ("motion", "appearance")]


class Sampler:
    """Samples clips of one motion file on the base, or of the base alone."""

    def __init__(self, base_folder, motion, options):
        self.base = load_base(base_folder)
        unet = motion.with_stem(f"{motion.stem}_unet")
        self.base.unet = unet_from_ldm(load_file(unet)).to(self.base.unet.device).eval()
        self.network = load_motion(self.base, motion).to(DEVICE).eval()
        self.how = Sampling(options.sampling_steps, options.guidance, prediction="v_prediction")
        self.cells = SIZE[0] // 8, SIZE[1] // 8

    @torch.no_grad()
    def text(self, caption):
        return encode_captions(self.base, [caption])[0].to(DEVICE)

    def still(self, caption, seed):
        predict = lambda *given: self.network.observe(*given, None, []).prediction  # noqa: E731
        return sample_still(predict, self.text(caption), self.text(""), self.cells, seed, self.how)

    def clip(self, caption, seed, asked=NOTHING):
        noise = starting_noise(seed, FRAMES, self.cells).to(DEVICE)
        model = partial(self.network, asked=asked)
        return sample_clip(model, self.text(caption), self.text(""), noise, self.how, progress=False)


def closed_loop(sampler, captions, seeds, ranges):
    """Return a group for each caption and seed: rows of motion and appearance, as asked and as measured."""
    motions, appearances = grid(ranges)
    groups = []
    for caption in captions:
        for seed in seeds:
            still = sampler.still(caption, seed)
            rows = []
            for motion in motions:
                for appearance in appearances[::2]:
                    asked = asked_for(still, motion, appearance, FRAMES)
                    rows.append([motion, appearance, *factors_of(sampler.clip(caption, seed, asked))])
            groups.append(torch.tensor(rows))
    return groups


def report(name, groups):
    for what, asked, found in (
        ("motion -> motion", 0, 2),
        ("appearance -> appearance", 1, 3),
        ("motion -> appearance", 0, 3),
        ("appearance -> motion", 1, 2),
    ):
        print(
            f"{name:10} {what:26} {interval(groups, lambda rows, a=asked, f=found: spearman(rows[:, a], rows[:, f]))}"
        )
    for row in torch.stack(groups).mean(0)[1::3]:
        print(f"{name:10} asked for motion {row[0]:.0f}: {row[2]:.0f} (mean)")


def psnr(a, b):
    return -10 * math.log10(((a.astype(float) - b.astype(float)) ** 2).mean() / 255**2 + 1e-12)


def prior(sampler, captions, seeds, ranges):
    """Print PSNR of the middle frame to the still, to a wrong one, without a prior, and with another prompt."""
    rows = []
    for number, caption in enumerate(captions):
        other = captions[(number + 1) % len(captions)]
        for seed in seeds:
            still, wrong = sampler.still(caption, seed), sampler.still(other, seed)
            ask = partial(asked_for, motion=ranges["motion"][1], appearance=ranges["appearance"][1], frames=FRAMES)
            clips = [
                sampler.clip(*given)
                for given in (
                    (caption, seed + 100, ask(still)),
                    (caption, seed + 100, ask(None)),
                    (other, seed + 100, ask(still)),
                )
            ]
            picture, false = (decode_clip(sampler.base.vae, z[None])[0] for z in (still, wrong))
            again = encode_frames(sampler.base.vae, to_network(picture[None]))
            middles = [decode_clip(sampler.base.vae, clip[FRAMES // 2][None])[0] for clip in clips]
            rows.append(
                [
                    psnr(middles[0], picture),
                    psnr(middles[0], false),
                    psnr(middles[1], picture),
                    psnr(middles[2], picture),
                    psnr(decode_clip(sampler.base.vae, again)[0], picture),
                ]
            )
    names = "its still", "another still", "its still, none given", "its still, another prompt", "the autoencoder's own"
    for name, values in zip(names, torch.tensor(rows).T):
        groups = list(values[:, None])
        print(f"prior: middle frame to {name:28} {interval(groups, lambda x: x.mean().item())} dB")


def halves(sampler, captions, seeds, ranges):
    """Print, with and without each half of HiGen, how often clips show what their caption says, and how alike
    neighbouring frames are, by their features."""
    for name, prior_given, factors_given in (
        ("neither", False, False),
        ("prior", True, False),
        ("factors", False, True),
        ("both", True, True),
    ):
        rows = []
        for scene in captions:
            for seed in seeds:
                still = sampler.still(scene.caption, seed) if prior_given else None
                numbers = (ranges["motion"][1], ranges["appearance"][1]) if factors_given else (None, None)
                latents = sampler.clip(scene.caption, seed, asked_for(still, *numbers, FRAMES))
                frames = torch.from_numpy(decode_clip(sampler.base.vae, latents)).permute(0, 3, 1, 2) / 127.5 - 1
                right = accuracy(frames, [scene] * FRAMES)
                consistency = appearance_similarity(latent_features(latents)).diagonal(1).mean().item()
                rows.append([sum(right.values()) / len(right), consistency, *factors_of(latents)])
        for what, values in zip(("as the caption says", "consistency", "motion", "appearance"), torch.tensor(rows).T):
            print(f"{name:8} {what:20} {interval(list(values[:, None]), lambda x: x.mean().item())}")


def sheet(sampler, captions, ranges, path):
    """Write clips of two captions at three motions and at three changes of look."""
    motions, appearances = grid(ranges, 3)
    rows = []
    for caption in captions[:2]:
        still = sampler.still(caption, 0)
        rows.append((f"{caption}\nthe still", decode_clip(sampler.base.vae, still[None])))
        asked = [(m, appearances[0]) for m in motions] + [(motions[0], a) for a in appearances[1:]]
        for motion, appearance in asked:
            clip = sampler.clip(caption, 0, asked_for(still, motion, appearance, FRAMES))
            rows.append((f"motion {motion:.0f}\nappearance {appearance:.2f}", decode_clip(sampler.base.vae, clip)))
    contact_sheet(rows, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/closed-loop"))
    parser.add_argument("--clips", type=int, default=200, help="default 200")
    parser.add_argument("--radius", type=float, default=0.3, help="of the shapes, of the width; default 0.3")
    parser.add_argument("--base-steps", type=int, default=1500, help="default 1500")
    parser.add_argument("--steps", type=int, default=3000, help="of decouple, default 3000")
    parser.add_argument("--train-seed", type=int, default=0)
    parser.add_argument("--captions", type=int, default=4, help="held out, default 4")
    parser.add_argument("--seeds", type=int, default=3, help="of sampling, default 3")
    parser.add_argument("--sampling-steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()

    clips, base = options.output / "clips", options.output / "base"
    if not clips.is_dir():
        draw_set(clips, options.clips, options.radius)
    if not base.is_dir():
        make_base(base, options.base_steps)
    scenes = split_scenes()[1][:: 42 // options.captions][: options.captions]
    captions = [scene.caption for scene in scenes]
    for name, measure in (("trained", measured), ("shuffled", of_another)):
        run = options.output / f"{name}-{options.train_seed}"
        motion = run / f"{run.name}.safetensors"
        if not motion.is_file():
            train(options, base, clips, run, measure)
        ranges = read_motion_info(motion).factors
        sampler = Sampler(base, motion, options)
        report(name, closed_loop(sampler, captions, range(options.seeds), ranges))
        if name == "trained":
            prior(sampler, captions, range(options.seeds), ranges)
            halves(sampler, scenes, range(options.seeds), ranges)
        sheet(sampler, captions, ranges, options.output / f"{run.name}.png")


if __name__ == "__main__":
    main()
