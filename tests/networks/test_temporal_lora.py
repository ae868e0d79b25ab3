"""LoRAs on the attentions over frames of another inflation: where they are, what they add, and merged."""

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal, TemporalLora
from stillmotion.networks.frame_attention import FrameAttention
from stillmotion.networks.inflation import Attached, Inflation, after_block, after_layer
from stillmotion.networks.sites import Level, Structure
from stillmotion.networks.temporal_lora import changes, put_on
from torch import nn

SLIM = Structure((Level(32, (1,), (1, 1)), Level(64, (0,), (0, 2))), middle=1, context=768)
GROUNDS = {
    "AnimateDiff v3": InflationConfig(Temporal()),
    "AnimateDiff v2": InflationConfig(Temporal(middle=True, norm_scope="clip")),
    "space-time": InflationConfig(Temporal(levels=(("factorised",), ("stacked",)), layers=3, middle=True)),
    "HiGen": InflationConfig(Temporal(levels=(("convolution", "transformer"),))),
    "few-shot": InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(2)),
}
CLIP = Clip.of(3)


def made(config, std=0.2):
    inflation = Inflation(config, SLIM).double()
    for parameter in inflation.parameters():
        nn.init.normal_(parameter, std=std)
    return inflation.requires_grad_(False)


def lora_on(ground, rank=2):
    return InflationConfig(temporal_lora=TemporalLora.on(GROUNDS[ground], rank))


def outputs(ground):
    """What a ground adds after every layer and block, of the same activations for all of a width."""
    found, attached = {}, [Attached(ground)]
    for site in SLIM.sites():
        generator = torch.Generator().manual_seed(site.width)
        x = torch.randn(6, site.width, 2, 2, generator=generator, dtype=torch.float64)
        found[site.name] = after_layer(x, attached, site.name, CLIP) - x
        for block in site.blocks:
            tokens = x.flatten(2).mT
            found[block] = after_block(tokens, attached, block, CLIP) - tokens
    return found


@pytest.mark.parametrize("name", GROUNDS)
def test_every_attention_over_frames_has_its_loras_and_nothing_else_has(name):
    config, ground = lora_on(name), made(GROUNDS[name])
    assert InflationConfig.from_json(config.to_json()) == config
    changed = {change.parameter for change in changes(Inflation(config, SLIM).state_dict())}
    attentions = {n for n, m in ground.named_modules() if isinstance(m, FrameAttention)}
    assert changed == {f"{name}.{layer}.weight" for name in attentions for layer in ("qkv", "out")} and changed


@pytest.mark.parametrize("name", GROUNDS)
def test_new_loras_change_no_bit_and_trained_ones_are_their_products_merged(name):
    ground, lora = made(GROUNDS[name]), made(lora_on(name))
    before = outputs(ground)
    new = Inflation(lora_on(name), SLIM).double()
    put_on(ground, new.parts())
    assert all(torch.equal(before[place], after) for place, after in outputs(ground).items())
    new.load_state_dict(lora.state_dict())
    hooked, merged = outputs(ground), made(GROUNDS[name])
    merged.load_state_dict(ground.state_dict())
    weights = merged.state_dict()
    for change in changes(lora.state_dict()):
        weights[change.parameter][change.start : change.start + change.rows] += change.up @ change.down
    places = {path.removesuffix(".temporal_lora") for path, _ in lora.parts()}
    for place, expected in outputs(merged).items():
        torch.testing.assert_close(hooked[place], expected)
        assert bool((hooked[place] - before[place]).abs().max() > 1e-4) == (place in places)


def test_what_has_no_attention_over_frames_has_nothing_to_change():
    assert TemporalLora.on(InflationConfig(Temporal(levels=(("convolution",),)), recurrence=Recurrence()), 4) is None
    with pytest.raises(ValueError, match="no attention that it changes"):
        TemporalLora(levels=())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"levels": (("none",),)}, {"middle": 1}, {"frame_attention": 1}])
def test_values_that_are_not_allowed(wrong):
    with pytest.raises(ValueError, match="allowed are"):
        TemporalLora(**wrong)
