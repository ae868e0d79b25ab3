"""What an inflation holds and adds: nothing when new, then the sum of its parts, each by its strength."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stillmotion.networks.asked import Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    PARTS,
    Appearance,
    Condition,
    CrossFrames,
    InflationConfig,
    Mapping,
    Motion,
    Prior,
    Queries,
    Recurrence,
    Resampling,
    Temporal,
    Tokens,
)
from stillmotion.networks.inflation import (
    Attached,
    Inflation,
    after_block,
    after_layer,
    after_self_attention,
    before_unet,
    without_merged,
)
from stillmotion.networks.kinds import BLOCKS
from stillmotion.networks.recurrent import MixGate
from stillmotion.networks.sites import Level, Structure
from stillmotion.networks.tokens import TokenWeight
from torch import nn
from torch.nn import functional as F

SLIM = Structure((Level(32, (1,), (1, 1)), Level(64, (0,), (0, 2))), middle=1, context=768)
NO_MIDDLE = Structure((Level(32, (0,), (0, 0)), Level(64, (1,), (1, 1))), middle=None, context=768)
EVERYTHING = InflationConfig(Temporal(heads=4, middle=True), CrossFrames(heads=4), Recurrence(), Queries(rank=3))
EVERY_KIND = InflationConfig(
    Temporal(heads=4, middle=True, levels=(tuple(BLOCKS),)),
    *(CrossFrames(heads=4), Recurrence(), Queries(rank=3), Resampling((0,)), Mapping(), Tokens(frames=3)),
)
CLIP = Clip.of(3)

UNIT = "output_blocks.1.1"
BLOCK = f"{UNIT}.transformer_blocks.1"
ATTN1 = f"{BLOCK}.attn1"
WIDTH = 64


def inflation(config=EVERYTHING, structure=SLIM, trained=True):
    made = Inflation(config, structure).double()
    for parameter in made.parameters() if trained else []:
        nn.init.normal_(parameter, std=0.2)
    return made


def activations():
    return torch.randn(2 * CLIP.frames, WIDTH, 3, 2, dtype=torch.float64)


def tokens():
    return torch.randn(2 * CLIP.frames, 5, WIDTH, dtype=torch.float64)


def projections():
    q, k, v, out = (nn.Linear(WIDTH, WIDTH).double().requires_grad_(False) for _ in range(4))
    return SimpleNamespace(heads=4, to_q=q, to_k=k, to_v=v, to_out=nn.ModuleList([out]))


def attention(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def plain_attention(project, x):
    q, k, v = project.to_q(x), project.to_k(x), project.to_v(x)
    return project.to_out[0](attention(q, k, v, project.heads))


def run(place, attached, x, project, clip=CLIP):
    """One of the three functions at its site."""
    if place == "unit":
        return after_layer(x, attached, UNIT, clip)
    if place == "block":
        return after_block(x, attached, BLOCK, clip)
    return after_self_attention(plain_attention(project, x), x, attached, ATTN1, clip, project, attention)


def frozen(place, x, project):
    return plain_attention(project, x) if place == "attention" else x


def input_of(place):
    return activations() if place == "unit" else tokens()


PLACES = ["unit", "block", "attention"]


@pytest.mark.parametrize("place", PLACES)
def test_a_new_inflation_adds_exactly_nothing(place):
    x, project = input_of(place), projections()
    assert torch.equal(run(place, [Attached(inflation(trained=False))], x, project), frozen(place, x, project))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_inflation_adds_exactly_nothing_anywhere(dtype):
    """Every part of every site, on its own; tokens alone start with a tenth of their weight, a resampler of prompts
    is there trained or not at all, and LoRAs of another inflation are `test_temporal_lora`'s."""
    everything = replace(EVERY_KIND, prior=Prior(), motion=Motion(), appearance=Appearance(3), condition=Condition())
    made, tried = Inflation(everything, SLIM).to(dtype), set()
    widths = {name: site.width for site in SLIM.sites() for name in (site.name, *site.blocks)}
    widths |= {"sample": 4, "time": 128}
    for name, module in made.parts():
        site, part = name.rsplit(".", 1)
        if part == "tokens":
            continue
        width = widths[site.removesuffix(".attn1").removesuffix(".attn2")]
        added = part_alone(part, module, width, dtype)
        assert not added.any(), name
        tried.add(part)
    assert tried == {*BLOCKS, *PARTS} - {"temporal", "tokens", "resampler", "temporal_lora"}


def part_alone(part, module, width, dtype):
    x = torch.randn(2 * CLIP.frames, 5, width, dtype=dtype)
    if part in (*BLOCKS, "resampling", "mapping"):
        return module(x.mT.unflatten(2, (5, 1)), CLIP.frames)
    if part == "frame_attention":
        return module(x, CLIP.frames)
    if part == "prior":
        still = Given(torch.randn(2, 4, 5, 1, dtype=dtype))
        return module(x.mT.unflatten(2, (5, 1)), still, CLIP.frames, CLIP.frames)
    if part == "condition":
        known = Given(torch.randn(2, CLIP.frames, 5, 5, 1, dtype=dtype))
        return module(x.mT.unflatten(2, (5, 1)), known, CLIP.frames, CLIP.indices)
    if part in ("motion", "appearance"):
        asked = Given(torch.rand(2, *[CLIP.frames] * (1 if part == "motion" else 2)))
        return module(asked, CLIP.frames, CLIP.indices, x)
    if part == "recurrence":
        layers = [nn.Linear(width, width).to(dtype) for _ in range(4)]
        project = SimpleNamespace(heads=4, **dict(zip(("to_q", "to_k", "to_v"), layers)), to_out=layers[3:])
        return module(x, plain_attention(project, x), project, attention, CLIP.frames)
    return module(x)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0, -1.0])
def test_a_strength_multiplies_what_is_added(place, strength):
    x, project, made = input_of(place), projections(), inflation()
    plain = frozen(place, x, project)
    added = run(place, [Attached(made)], x, project) - plain
    assert added.abs().max() > 1e-3
    got = run(place, [Attached(made, temporal=strength, recurrence=strength)], x, project)
    torch.testing.assert_close(got, plain + strength * added)


@pytest.mark.parametrize("place", PLACES)
def test_strength_zero_is_exactly_the_frozen_model(place):
    x, project = input_of(place), projections()
    got = run(place, [Attached(inflation(), temporal=0.0, recurrence=0.0)], x, project)
    assert torch.equal(got, frozen(place, x, project))


def test_each_strength_is_of_its_own_parts():
    """`temporal` of the blocks and of the frames, `recurrence` of the recurrent attention."""
    project, made = projections(), inflation()
    still, forgetful = [Attached(made, temporal=0.0)], [Attached(made, recurrence=0.0)]
    for place, silent, heard in [
        ("unit", still, forgetful),
        ("block", still, forgetful),
        ("attention", forgetful, still),
    ]:
        x = input_of(place)
        assert torch.equal(run(place, silent, x, project), frozen(place, x, project))
        assert torch.equal(run(place, heard, x, project), run(place, [Attached(made)], x, project))


def test_strength_zero_does_not_run_the_module():
    made = inflation()
    made.at(UNIT, "attention").forward = None
    x = activations()
    assert torch.equal(after_layer(x, [Attached(made, temporal=0.0)], UNIT, CLIP), x)


@pytest.mark.parametrize("place", PLACES)
def test_several_inflations_add_up_in_any_order(place):
    x, project = input_of(place), projections()
    three = [Attached(inflation(), 0.5, 0.5), Attached(inflation(), 1.0, 1.0), Attached(inflation(), 2.0, 2.0)]
    plain = frozen(place, x, project)
    total = plain + sum(run(place, [one], x, project) - plain for one in three)
    torch.testing.assert_close(run(place, three, x, project), total)
    torch.testing.assert_close(run(place, three[::-1], x, project), total)
    assert torch.equal(run(place, three[:2], x, project), run(place, (a for a in three[:2]), x, project))


@pytest.mark.parametrize("place", PLACES)
def test_none_attached_is_the_frozen_model_itself(place):
    x, project = input_of(place), projections()
    assert torch.equal(run(place, [], x, project), frozen(place, x, project))


def test_the_input_is_not_changed_in_place():
    x, made = activations(), inflation()
    before = x.clone()
    after_layer(x, [Attached(made), Attached(made)], UNIT, CLIP)
    assert torch.equal(x, before)


def parts_of(config, structure=SLIM):
    return [name for name, _ in Inflation(config, structure).parts()]


def test_temporal_blocks_are_after_every_unit_and_in_the_middle_where_wanted():
    outside = ["input_blocks.1.1", "input_blocks.3.0", *(f"output_blocks.{i}" for i in ("0.0", "1.1", "2.1", "3.1"))]
    assert parts_of(InflationConfig(temporal=Temporal())) == [f"{name}.attention" for name in outside]
    with_middle = [*outside[:2], "middle_block.1", *outside[2:]]
    assert parts_of(InflationConfig(temporal=Temporal(middle=True))) == [f"{name}.attention" for name in with_middle]


def test_without_a_middle_block_there_is_nothing_to_attach_there():
    units = ["input_blocks.1.0", "input_blocks.3.1", *(f"output_blocks.{i}" for i in ("0.1", "1.1", "2.0", "3.0"))]
    config = InflationConfig(temporal=Temporal(middle=True))
    assert parts_of(config, NO_MIDDLE) == [f"{name}.attention" for name in units]


def test_parts_in_transformer_blocks_are_in_every_one_of_them():
    blocks = ["input_blocks.1.1.transformer_blocks.0", "middle_block.1.transformer_blocks.0"]
    blocks += ["output_blocks.1.1.transformer_blocks.0", "output_blocks.1.1.transformer_blocks.1"]
    blocks += ["output_blocks.2.1.transformer_blocks.0", "output_blocks.3.1.transformer_blocks.0"]
    assert parts_of(InflationConfig(frame_attention=CrossFrames())) == [f"{b}.frame_attention" for b in blocks]
    assert parts_of(InflationConfig(recurrence=Recurrence())) == [f"{b}.attn1.recurrence" for b in blocks]
    queries = [f"{b}.{attn}.queries" for b in blocks for attn in ("attn1", "attn2")]
    assert parts_of(InflationConfig(queries=Queries())) == queries


def test_keys_of_the_state_dict_are_site_part_and_parameter():
    made = Inflation(EVERYTHING, SLIM)
    expected = {f"{name}.{key}": value for name, module in made.parts() for key, value in module.state_dict().items()}
    state = made.state_dict()
    assert state.keys() == expected.keys()
    assert all(state[key].data_ptr() == value.data_ptr() for key, value in expected.items())
    assert "output_blocks.1.1.attention.proj_out.weight" in state
    assert "middle_block.1.transformer_blocks.0.attn1.recurrence.mix.gamma" in state
    assert "input_blocks.1.1.transformer_blocks.0.attn2.queries.down.weight" in state


def test_at_finds_the_module_of_a_site_and_nothing_elsewhere():
    made = Inflation(replace_part(EVERYTHING, frame_attention=None), SLIM)
    assert made.at(UNIT, "attention") is made.get_submodule(f"{UNIT}.attention")
    assert made.at(ATTN1, "recurrence") is made.get_submodule(f"{ATTN1}.recurrence")
    assert made.at(BLOCK, "frame_attention") is None
    assert made.at("output_blocks.0.1", "attention") is None
    assert made.at("no.such.site", "attention") is None


def replace_part(config, **parts):
    return InflationConfig(
        **{"temporal": config.temporal, "recurrence": config.recurrence, "queries": config.queries, **parts}
    )


def test_a_deep_copy_is_its_own_inflation_and_stays_whole():
    """A weight changed through the copy's state dict is the weight that the copy runs, and not the original's."""
    original, x = inflation(), activations()
    before = after_layer(x, [Attached(original)], UNIT, CLIP)
    copied = copy.deepcopy(original)
    assert torch.equal(after_layer(x, [Attached(copied)], UNIT, CLIP), before)

    zeros = {key: torch.zeros_like(value) for key, value in copied.state_dict().items()}
    copied.load_state_dict(zeros)
    assert torch.equal(after_layer(x, [Attached(copied)], UNIT, CLIP), x)
    assert torch.equal(after_layer(x, [Attached(original)], UNIT, CLIP), before)


def test_a_copy_made_by_casting_runs_the_cast_weights():
    made = Inflation(EVERYTHING, SLIM).to(torch.bfloat16)
    assert {p.dtype for p in made.at(UNIT, "attention").parameters()} == {torch.bfloat16}


def test_sizes_of_parts_follow_their_options():
    made = Inflation(replace_part(EVERYTHING, queries=Queries(rank=3)), SLIM)
    assert made.at(ATTN1, "queries").down.weight.shape == (3, WIDTH)
    full = Inflation(InflationConfig(queries=Queries(rank=None)), SLIM)
    assert full.at(ATTN1, "queries").diff.weight.shape == (WIDTH, WIDTH)
    assert made.at(UNIT, "attention").attentions[0].heads == 4


def test_kinds_are_those_of_their_level_each_at_its_sites():
    """Units, ResBlocks or transformers; the middle block is of the coarsest level."""
    levels = (("factorised", "transformer"), ("convolution", "stacked"))
    fine = ["input_blocks.1.1", "output_blocks.2.1", "output_blocks.3.1"]
    res = ["input_blocks.3.0", "middle_block.0", "middle_block.2", "output_blocks.0.0", "output_blocks.1.0"]
    units = ["input_blocks.3.0", "middle_block.1", "output_blocks.0.0", "output_blocks.1.1"]
    expected = {f"{site}.factorised" for site in fine}
    expected |= {f"{site}.transformer" for site in ("input_blocks.0.0", *fine)}
    expected |= {f"{site}.convolution" for site in res} | {f"{site}.stacked" for site in units}
    found = parts_of(InflationConfig(temporal=Temporal(levels=levels, middle=True)))
    assert len(found) == len(expected) and set(found) == expected
    outside = {name for name in expected if not name.startswith("middle_block")}
    assert set(parts_of(InflationConfig(temporal=Temporal(levels=levels)))) == outside


@pytest.mark.parametrize("levels", [(), (0.5, -3.0)])
def test_a_strength_is_that_of_the_part_and_of_its_level(levels):
    """The mapping network and the generator of tokens are in front of the U-Net and of no level; a resampling is of
    the level whose frames it halves, on the way up too."""
    made = Inflation(EVERY_KIND, SLIM)
    attached = Attached(made, temporal=2.0, recurrence=5.0, mapping=7.0, levels=levels)
    of_site = {name: site.level for site in SLIM.sites() for name in (site.name, *site.blocks)}
    of_site |= {"input_blocks.2.0": 0, "output_blocks.1.2": 0, "sample": None, "text": None}
    for name, _ in made.parts():
        site, part = name.rsplit(".", 1)
        level = of_site[site.removesuffix(".attn1").removesuffix(".attn2")]
        factor = levels[level] if levels and level is not None else 1.0
        assert attached.strength(site, part) == factor * {"recurrence": 5.0, "mapping": 7.0}.get(part, 2.0), name


@pytest.mark.parametrize("place", PLACES)
def test_factors_of_levels_multiply_what_is_added_there(place):
    x, project, made = input_of(place), projections(), inflation()
    plain = frozen(place, x, project)
    added = run(place, [Attached(made)], x, project) - plain
    got = run(place, [Attached(made, temporal=0.5, recurrence=0.5, levels=(7.0, -3.0))], x, project)
    torch.testing.assert_close(got, plain - 1.5 * added)
    assert torch.equal(run(place, [Attached(made, levels=(7.0, 0.0))], x, project), plain)


KEYFRAMES = ((4, 1.0), (10, 0.25), (11, -2.0))


def test_keyframes_are_joined_by_lines_and_hold_at_either_end():
    made, frames = inflation(InflationConfig()), range(20)
    factors = [Attached(made, keyframes=KEYFRAMES).factor(frame) for frame in frames]
    np.testing.assert_allclose(factors, np.interp(frames, *zip(*KEYFRAMES)), atol=1e-12)
    assert [Attached(made, keyframes=((7, 0.5),)).factor(frame) for frame in (0, 7, 9)] == [0.5] * 3


@pytest.mark.parametrize("place", [*PLACES, "sample"])
def test_keyframes_are_of_the_frames_of_the_whole_video(place):
    """A window of it: each row of each clip is changed by the factor of its own frame, beside every other strength."""
    window, made = Clip((8, 10, 15)), inflation(EVERY_KIND)
    project, x = projections(), input_of("unit")[:, :4] if place == "sample" else input_of(place)

    def run_anywhere(attached):
        return before_unet(x, [attached], window) if place == "sample" else run(place, [attached], x, project, window)

    plain = frozen(place, x, project)
    added = run_anywhere(Attached(made)) - plain
    factors = torch.tensor([0.5, 0.25, -2.0] * 2, dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))
    got = run_anywhere(Attached(made, temporal=3.0, recurrence=3.0, mapping=3.0, keyframes=KEYFRAMES))
    torch.testing.assert_close(got, plain + 3 * factors * added)
    assert added.abs().amax(tuple(range(1, x.ndim))).gt(0).sum() >= 4, "of a memory, all frames but the first"


def test_without_what_is_merged_every_other_part_is_kept():
    assert without_merged(EVERYTHING) == replace_part(
        EVERYTHING, frame_attention=EVERYTHING.frame_attention, queries=None
    )


def test_layers_come_from_the_host():
    """Inside ComfyUI every linear, norm and convolution is the host's own, which casts its weights as it runs."""

    class HostLinear(nn.Linear):
        pass

    class HostLayerNorm(nn.LayerNorm):
        pass

    class HostGroupNorm(nn.GroupNorm):
        pass

    class HostConv2d(nn.Conv2d):
        pass

    class HostConv3d(nn.Conv3d):
        pass

    theirs = [HostLinear, HostLayerNorm, HostGroupNorm, HostConv2d, HostConv3d]
    made = Inflation(
        EVERY_KIND, SLIM, SimpleNamespace(**{layer.__name__.removeprefix("Host"): layer for layer in theirs})
    )
    gates = MixGate, TokenWeight
    layers = [module for module in made.modules() if module._parameters and not isinstance(module, gates)]
    assert {type(layer) for layer in layers} == set(theirs)
