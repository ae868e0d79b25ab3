"""Clips sampled on Temporal Windows through the host's own samplers."""

import torch
from stillmotion.samplers.windows import FUSES

FRAMES = 11


def windowed(model, window=4, overlap=2, fuse="pyramid"):
    from stillmotion.nodes.windowing import sampled_on_windows

    return sampled_on_windows(model, window, overlap, fuse)


def noise(frames=FRAMES, seed=0):
    return torch.randn(frames, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def condition(seed, rows=1, tokens=7, **options):
    text = torch.randn(rows, tokens, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, options]]


def sample(model, start, positive=None, negative=None, cfg=3.0, steps=2, sampler="euler", latent=None, **options):
    import comfy.sample

    positive, negative = positive or condition(1), negative or condition(2)
    latent = torch.zeros_like(start) if latent is None else latent
    return comfy.sample.sample(
        model, start, steps, cfg, sampler, "normal", positive, negative, latent, disable_pbar=True, seed=0, **options
    )


def video(frames=FRAMES, clips=2, channels=4, seed=0):
    return torch.randn(clips, channels, frames, 8, 6, generator=torch.Generator().manual_seed(seed))


def hints(frames, seed=0):
    return torch.rand(frames, 64, 48, 3, generator=torch.Generator().manual_seed(seed))


def guided(net):
    return condition(1, control=net, control_apply_to_uncond=True)


def assert_windows_change_nothing(model, *args, window=4, overlap=2, **options):
    plain = sample(model, *args, **options)
    for name in FUSES:
        assert torch.equal(sample(windowed(model, window, overlap, name), *args, **options), plain)
    return plain
