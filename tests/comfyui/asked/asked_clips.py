"""Clips that are asked for something, through the host's own samplers."""

import torch

FRAMES, SCALE = 4, 0.18215


def with_prior(model, latents, frame=-1, strength=1.0, size="refuse"):
    from stillmotion.nodes.prior import SpatialPrior

    return SpatialPrior.execute(model, {"samples": latents}, frame, strength, size).result[0]


def still(seed=5, frames=1, height=8, width=6):
    return torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(seed)) / SCALE


def noise(frames=FRAMES, seed=0):
    return torch.randn(frames, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def condition(seed, tokens=7, **options):
    return [[torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(seed)), options]]


def sample(model, noise, positive=None, negative=None, cfg=3.0, steps=2):
    import comfy.sample

    positive, negative = positive or condition(1), negative or condition(2)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=0
    )


def windowed(model, kind):
    if kind == "ours":
        from stillmotion.nodes.windows import TemporalWindows

        return TemporalWindows.execute(model, 4, 2, "pyramid").result[0]
    from comfy import context_windows as core

    model = model.clone()
    handler = core.IndexListContextHandler(
        core.get_matching_context_schedule("standard_static"),
        core.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=0,
        dim=0,
    )
    handler.causal_window_fix = False
    model.model_options["context_handler"] = handler
    return model
