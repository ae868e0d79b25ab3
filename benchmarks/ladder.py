"""Measure how near to a set of clips the samples of several motion files are, one file a row.

    python benchmarks/ladder.py --base toy.safetensors --videos runs/drawn --motions a.safetensors b.safetensors --mg

Samples clips of the set's own captions, the same noise for every file, and prints for each file
    distance    Fréchet distance to the clips of the set, of what the base's own U-Net has of a clip in its middle
                block: the mean over frames, and the mean change from frame to frame, in the first `--dimensions`
                principal directions of the set. It is no FVD, and compares with nothing but itself.
    difference  of neighbouring latent frames, mean absolute: motion and flicker together
    jitter      second differences over first ones: 1.73 where frames have nothing to do with each other, towards 0
                where they move evenly
    spread      standard deviation of what its mapping network makes of noisy latents, over that of these; 1 without
With --mg a last row samples the last file with mitigating gradients. Writes a contact sheet into --output.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch
from side_by_side import DEVICE
from stillmotion.networks.clip import Clip
from stillmotion.networks.inflation import Attached, before_unet
from stillmotion.networks.motion_file import read_motion_info
from stillmotion.samplers.factors import mean_frame_difference
from stillmotion.samplers.mitigating_gradient import Mitigation
from stillmotion.samplers.smoothness import jitter
from stillmotion.trainer.base.host import InflatedUNet
from stillmotion.trainer.base.load import encode_captions, encode_frames, load_base
from stillmotion.trainer.clips.cache import to_network
from stillmotion.trainer.clips.find import decode, find_clips, fit
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.run.compare import load_motion
from stillmotion.trainer.run.previews import decode_clip
from stillmotion.trainer.run.sample import OFF, Sampling, ddim, sample_clip, starting_noise
from stillmotion.trainer.show.pictures import contact_sheet


def frechet(a, b):
    """Return |mu_a - mu_b|² + tr(A + B - 2 (A B)^(1/2)) of the Gaussians that features (samples, dimensions)
    suggest."""
    means = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = (torch.cov(x.T) for x in (a, b))
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return (means + cov_a.trace() + cov_b.trace() - 2 * root).item()


def features(network, latents, no_caption):
    """Return those of one clip, (2 * channels,): the middle block's output at a low noise level, without a caption."""
    frames = len(latents)
    text, times = no_caption.expand(frames, -1, -1), torch.full((frames,), 100, device=latents.device)
    middle = network.observe(latents, times, text, Clip.of(frames), None, []).middle.mean((2, 3))
    return torch.cat([middle.mean(0), middle.diff(dim=0).abs().mean(0)]).double().cpu()


def project(real, count):
    """Return the map of features into principal directions of those of the set, centred, each of variance 1."""
    mean = real.mean(0)
    _, scales, directions = torch.linalg.svd(real - mean, full_matrices=False)
    spread = scales[:count] / (len(real) - 1) ** 0.5
    return lambda x: (x - mean) @ directions[:count].T / spread


def spread(network, latents, schedule):
    """Return that of one clip's latents, the mean over three noise levels."""
    frames, noise, ratios = len(latents), torch.randn_like(latents), []
    for time in (100, 500, 900):
        noisy = ddim(schedule).add_noise(latents, noise, torch.full((frames,), time))
        mapped = before_unet(noisy, [Attached(network.inflation)], Clip.of(frames))
        ratios.append((mapped.std() / noisy.std()).item())
    return sum(ratios) / len(ratios)


def real_clips(base, options):
    """Yield captions and latents of clips of the set."""
    for source in find_clips(options.videos)[: options.samples]:
        frames = fit(decode(source, options.fps, frames=options.frames).frames, options.size)
        yield source.caption, encode_frames(base.vae.to(DEVICE), to_network(frames).to(DEVICE))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--motions", type=Path, nargs="+", required=True)
    parser.add_argument("--mg", action="store_true", help="the last file once more, with mitigating gradients")
    parser.add_argument("--alpha", type=float, default=40, help="strength of these, default 40")
    parser.add_argument("--size", type=parse_size, default=(64, 64), help="width x height, default 64x64")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--fps", type=float, default=8, help="default 8")
    parser.add_argument("--samples", type=int, default=24, help="clips of each, default 24")
    parser.add_argument("--steps", type=int, default=12, help="default 12")
    parser.add_argument("--guidance", type=float, default=4, help="default 4")
    parser.add_argument("--dimensions", type=int, default=8, help="default 8")
    parser.add_argument("--output", type=Path, default=Path("runs/ladder"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    base = load_base(options.base)
    base.unet.to(DEVICE)
    base.text_encoder.to(DEVICE)
    judge, no_caption = InflatedUNet(base.unet), encode_captions(base, [""])
    captions, real = zip(*real_clips(base, options))
    real_features = torch.stack([features(judge, clip, no_caption) for clip in real])
    to_principal = project(real_features, options.dimensions)
    rungs = [(path.stem, path, OFF) for path in options.motions]
    rungs += [(f"{options.motions[-1].stem} + MG", options.motions[-1], Mitigation(options.alpha))] * options.mg
    print(f"{'':28}  distance  difference  jitter  spread")
    print(row(SimpleNamespace(name="clips of the set", distance=0.0, clips=real, spread=1.0)), flush=True)
    sheet = [("of the set", decode_clip(base.vae, real[0]))]
    cells = options.size[0] // 8, options.size[1] // 8
    for name, path, how in rungs:
        model, schedule, clips = load_motion(base, path), read_motion_info(path).schedule, []
        sampling = Sampling(options.steps, options.guidance, mitigation=how, schedule=schedule)
        for seed, caption in enumerate(captions):
            text, noise = encode_captions(base, [caption, ""]), starting_noise(seed, options.frames, cells).to(DEVICE)
            clips.append(sample_clip(model, *text, noise, sampling, progress=False))
        found = torch.stack([features(judge, clip, no_caption) for clip in clips])
        distance = frechet(to_principal(found), to_principal(real_features))
        mapped = spread(model, real[0], schedule)
        print(row(SimpleNamespace(name=name, distance=distance, clips=clips, spread=mapped)), flush=True)
        sheet += [(f"{name}\n{captions[i]}", decode_clip(base.vae, clips[i])) for i in (0, 1)]
    contact_sheet(sheet, options.output / "sheet.png")
    print(options.output / "sheet.png")


def row(rung):
    difference, rough = (sum(map(measure, rung.clips)) / len(rung.clips) for measure in (mean_frame_difference, jitter))
    return f"{rung.name:28}  {rung.distance:8.3f}  {difference:10.3f}  {rough:6.2f}  {rung.spread:6.3f}"


if __name__ == "__main__":
    main()
