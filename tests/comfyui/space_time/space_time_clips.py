"""Clips sampled through the host on motion files that change how many frames there are."""

import torch
from stillmotion.networks.config import InflationConfig, Resampling

WIDTHS, HEIGHT, WIDTH = (32, 32, 64, 64), 8, 16
HALVED = InflationConfig(resampling=Resampling((0, 1, 2)))


def attach(model, path, strength=1.0, **options):
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import load_motion

    strengths = {"temporal": strength, "recurrence": strength, "queries": strength}
    return attach(model, load_motion(path), **strengths, **options)


def condition(seed, rows=1, **options):
    return [[torch.randn(rows, 77, 768, generator=torch.Generator().manual_seed(seed)), options]]


def sample(model, noise, positive=None, negative=None, cfg=3.0, steps=1):
    import comfy.sample

    positive, negative = positive or condition(1), negative or condition(2)
    settings = (steps, cfg, "euler", "normal", positive, negative, torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=0)


def noise(frames, seed=0):
    return torch.randn(frames, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def difference(one, other):
    """The largest, of numbers of the size of the largest."""
    return ((one - other).abs().max() / other.abs().max()).item()


def assert_same(one, other):
    assert difference(one, other) < 1e-5


def assert_different(one, other):
    assert difference(one, other) > 1e-3


def watched(model):
    """A clone that notes what patches are told at each self-attention: its block, its rows and the frames' names."""
    seen, model = [], model.clone()

    def note(n, context, value, extra):
        seen.append((extra["block"], len(n), extra["original_shape"][0], extra.get("ad_params")))
        return n, context, value

    model.set_model_attn1_patch(note)
    return model, seen


LEVEL = {
    **{("input", i): i // 2 for i in range(1, 8, 2)},
    ("middle", 0): 3,
    **{("output", i): 3 - i // 2 for i in range(8)},
}
"""Of every block with attention, one ResBlock in each level on the way down and two on the way up."""
