"""The space-time U-Net as it runs in diffusers' U-Net: what is exact at the start, and what losses see of it."""

import copy
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    CrossFrames,
    InflationConfig,
    Mapping,
    Queries,
    Recurrence,
    Resampling,
    Temporal,
    Tokens,
)
from stillmotion.networks.inflation import Attached, Inflation
from stillmotion.networks.presets import lumiere_harivo
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from torch import nn
from torch.nn import functional as F

CONTEXT = 16
LEVELS = (0, 1, 2)
ALL_LEVELS = InflationConfig(resampling=Resampling(LEVELS))


def small_unet(widths=(32, 32, 64, 64), blocks=1):
    """Four levels, no attention at the coarsest one, as in SD1.5; its weights are random."""
    torch.manual_seed(1)
    sizes = {"cross_attention_dim": CONTEXT, "attention_head_dim": 4}
    return UNet2DConditionModel(block_out_channels=widths, layers_per_block=blocks, **sizes).eval()


@pytest.fixture(scope="module")
def unet():
    return small_unet()


def inflation(config, unet, trained=False):
    made = Inflation(config, structure_of(unet))
    for name, parameter in made.named_parameters() if trained else []:
        nn.init.normal_(parameter, mean=float("gamma" in name), std=0.1)
    return made


def given(frames, clips=1, same_text=False, size=(9, 7)):
    """Sample, timesteps and text, the latter of each frame or of each clip; 77 tokens where frames get their own."""
    rows = clips * frames
    text = torch.randn(clips, 1 if same_text else frames, 77, CONTEXT).expand(-1, frames, -1, -1).flatten(0, 1)
    return torch.randn(rows, 4, *size), torch.full((rows,), 500), text


@torch.no_grad()
def images(unet, sample, timesteps, text):
    """What the frozen U-Net makes of every frame for itself."""
    return unet(sample, timesteps, text).sample


@torch.no_grad()
def video(unet, config, sample, timesteps, text, trained=False, clips=1):
    model = InflatedUNet(copy.deepcopy(unet), inflation(config, unet, trained))
    return model(sample, timesteps, text, Clip.of(len(sample) // clips))


@pytest.mark.parametrize("frames", [8, 16, 24, 80, 5, 17])
def test_every_eighth_frame_of_a_new_one_is_its_image_at_any_number_of_frames(unet, frames):
    """Each frame has a text of its own; the others are drawn with what coarser levels know of an earlier frame."""
    rows = given(frames)
    expected, got = images(unet, *rows), video(unet, ALL_LEVELS, *rows)
    torch.testing.assert_close(got[::8], expected[::8], atol=1e-5, rtol=0)
    others = [f for f in range(frames) if f % 8]
    assert (got - expected)[others].abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("same_text", [True, False])
@pytest.mark.parametrize("levels", [(2,), (0,), (1, 2), (0, 2), LEVELS])
def test_of_halved_levels_every_nth_frame_is_its_image(unet, levels, same_text):
    rows, resampling = given(12, same_text=same_text), Resampling(levels)
    expected = images(unet, *rows)
    got = video(unet, InflationConfig(resampling=resampling), *rows)
    exact = [(g - e).abs().max() < 1e-5 for g, e in zip(got, expected)]
    assert exact == [f % resampling.factor == 0 for f in range(12)]


@pytest.mark.parametrize("frames", [8, 11])
def test_two_clips_of_a_batch_are_each_what_they_are_alone(unet, frames):
    sample, timesteps, text = given(frames, clips=2)
    together = video(unet, ALL_LEVELS, sample, timesteps, text, trained=True, clips=2)
    alone = [
        video(unet, ALL_LEVELS, sample[part], timesteps[part], text[part])
        for part in (slice(0, frames), slice(frames, None))
    ]
    untrained = video(unet, ALL_LEVELS, sample, timesteps, text, clips=2)
    torch.testing.assert_close(untrained, torch.cat(alone), atol=1e-5, rtol=0)
    assert (together - untrained).abs().max() > 1e-2


@pytest.mark.parametrize("frames", [8, 11])
def test_a_still_clip_is_the_image_at_all_frames(unet, frames):
    sample, timesteps, text = given(1)
    rows = sample.repeat(frames, 1, 1, 1), timesteps.repeat(frames), text.repeat(frames, 1, 1)
    expected = images(unet, sample, timesteps, text)
    torch.testing.assert_close(video(unet, ALL_LEVELS, *rows), expected.repeat(frames, 1, 1, 1), atol=1e-5, rtol=0)


def test_a_frame_is_drawn_from_its_own_fine_features_and_coarser_ones_of_earlier_frames(unet):
    """Frame f sees r ⌊f / r⌋ for r = 1, 2, 4, 8 and nothing else."""
    model = InflatedUNet(copy.deepcopy(unet), inflation(ALL_LEVELS, unet))
    sample, timesteps, text = given(11)
    sample.requires_grad_()
    out = model(sample, timesteps, text, Clip.of(11))
    for frame in (0, 3, 5, 7, 10):
        (gradient,) = torch.autograd.grad(out[frame].square().sum(), sample, retain_graph=True)
        seen = gradient.abs().amax((1, 2, 3)).nonzero().flatten().tolist()
        assert seen == sorted({r * (frame // r) for r in (1, 2, 4, 8)})


@pytest.mark.parametrize("levels, rates", [(LEVELS, (17, 9, 5, 3)), ((1, 2), (17, 17, 9, 5)), ((0, 2), (17, 9, 9, 5))])
def test_each_level_runs_at_its_own_frame_rate(unet, levels, rates):
    model, seen = InflatedUNet(copy.deepcopy(unet), inflation(InflationConfig(resampling=Resampling(levels)), unet)), {}
    for site in model.sites:
        if site.kind in ("res", "transformer", "down", "up"):
            layer = model.unet.get_submodule(site.diffusers)
            layer = layer.norm if site.kind == "transformer" else layer
            layer.register_forward_hook(lambda layer, x, y, site=site: seen.update({site: len(x[0])}))
    with torch.no_grad():
        model(*given(17), Clip.of(17))
    assert len(seen) == sum(site.kind != "conv_in" for site in model.sites)
    assert [rows for rows in seen.values()] == [rates[site.level] for site in seen]


def test_a_convolution_that_does_not_start_as_the_identity_is_noticed(unet):
    """With torch's own start, of which ours is what is beside the identity, no frame is its image."""
    made = inflation(ALL_LEVELS, unet)
    with torch.no_grad():
        for _, module in made.parts():
            module.conv.reset_parameters()
            module.conv.weight.squeeze(-1).sub_(nn.init.dirac_(torch.empty_like(module.conv.weight.squeeze(-1))))
        rows = given(16)
        got = InflatedUNet(copy.deepcopy(unet), made)(*rows, Clip.of(16))
    assert (got - images(unet, *rows))[::8].abs().amax((1, 2, 3)).min() > 1e-2


def test_every_resampling_learns_from_the_first_step(unet):
    model = InflatedUNet(copy.deepcopy(unet), inflation(ALL_LEVELS, unet))
    rows = given(9)
    F.mse_loss(model(*rows, Clip.of(9)), torch.randn_like(rows[0])).backward()
    gradients = {name: p.grad.abs().max() for name, p in model.inflation.named_parameters()}
    assert len(gradients) == 2 * 6
    assert min(gradients.values()) > 1e-7


def test_on_the_topology_of_sd15_every_part_of_lumiere_and_harivo_starts_neutral():
    """At narrow widths: every eighth frame is its image but for what tokens of a tenth's weight change."""
    unet = small_unet(widths=(32, 64, 64, 96), blocks=2)
    rows = given(17, size=(8, 8))
    expected = images(unet, *rows)
    config = lumiere_harivo(structure_of(unet), frames=32)
    model = InflatedUNet(copy.deepcopy(unet), inflation(config, unet))
    kinds = [site.kind for site in model.sites]
    assert [kinds.count(kind) for kind in ("res", "transformer", "down", "up")] == [22, 16, 3, 3]
    got = model(*rows, Clip.of(17)).detach()
    torch.testing.assert_close(got[::8], expected[::8], atol=1e-3, rtol=0)
    assert (got[::8] - expected[::8]).abs().max() > 1e-8, "the tokens are there"
    for module in model.inflation.modules():
        if hasattr(module, "theta"):
            nn.init.constant_(module.theta, -math.inf)
    with torch.no_grad():
        without_tokens = model(*rows, Clip.of(17))
    torch.testing.assert_close(without_tokens[::8], expected[::8], atol=1e-5, rtol=0)
    others = [f for f in range(17) if f % 8]
    assert (without_tokens - expected)[others].abs().amax((1, 2, 3)).min() > 1e-3


PARTS = {
    "attention": InflationConfig(temporal=Temporal()),
    "attention over the clip's norm": InflationConfig(temporal=Temporal(norm_scope="clip", middle=True)),
    "convolution": InflationConfig(temporal=Temporal(levels=(("convolution",),), middle=True)),
    "transformer": InflationConfig(temporal=Temporal(levels=(("transformer",),), middle=True)),
    "factorised and stacked": InflationConfig(
        temporal=Temporal(levels=(("factorised",), ("factorised",), ("factorised",), ("stacked",)), middle=True)
    ),
    "resampling": ALL_LEVELS,
    "mapping": InflationConfig(mapping=Mapping()),
    "mapping over pixels": InflationConfig(mapping=Mapping(kernel=3)),
    "tokens": InflationConfig(tokens=Tokens(frames=5)),
    "frame attention": InflationConfig(frame_attention=CrossFrames()),
    "gated scan": InflationConfig(recurrence=Recurrence()),
    "paper rnn": InflationConfig(recurrence=Recurrence("paper_rnn")),
    "everything": InflationConfig(
        Temporal(levels=(("convolution", "factorised"), ("transformer",), ("attention",), ("stacked",)), middle=True),
        *(CrossFrames(), Recurrence(), Queries(4), Resampling(LEVELS), Mapping(), Tokens(frames=5)),
    ),
}
FOR_ITSELF = {"tokens"}
"""Parts that do not let frames see each other's samples."""


@pytest.mark.parametrize("name", PARTS)
def test_no_part_starts_at_a_dead_point(unet, name):
    """Of a product exactly one factor may be zero: it moves at the first step, and what it multiplies at the second."""
    frames = 9 if PARTS[name].resampling else 5  # so that there are several at every level
    model = InflatedUNet(copy.deepcopy(unet), inflation(PARTS[name], unet))
    rows, target = given(frames), torch.randn(frames, 1, 1, 1)
    optimizer = torch.optim.SGD(model.inflation.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (model(*rows, Clip.of(frames)) * target).square().mean().backward()
        optimizer.step()
    assert not [name for name, p in model.inflation.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("name", PARTS)
def test_a_clip_does_not_see_the_other_clip_of_its_batch(unet, name):
    frames, model = 5, InflatedUNet(copy.deepcopy(unet), inflation(PARTS[name], unet, trained=True))
    sample, timesteps, text = given(frames, clips=2)
    sample.requires_grad_()
    text.requires_grad_()
    out = model(sample, timesteps, text, Clip.of(frames))
    by_sample, by_text = torch.autograd.grad(out[frames:].square().sum(), (sample, text), retain_graph=True)
    assert not by_sample[:frames].any() and not by_text[:frames].any()
    (by_first,) = torch.autograd.grad(out[-1].square().sum(), sample)
    seen = by_first.abs().amax((1, 2, 3)).nonzero().flatten().tolist()
    assert len(seen) == 1 if name in FOR_ITSELF else len(seen) > 1, "of its own clip it sees other frames"


@pytest.mark.parametrize("name", ["resampling", "tokens", "everything"])
def test_checkpointing_changes_neither_loss_nor_gradients(unet, name):
    made, rows = inflation(PARTS[name], unet, trained=True), given(9)
    target = torch.randn_like(rows[0])

    def loss_and_gradients(checkpointing):
        model = InflatedUNet(copy.deepcopy(unet), copy.deepcopy(made), checkpointing=checkpointing)
        runs = []
        model.unet.down_blocks[1].resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
        loss = F.mse_loss(model(*rows, Clip.of(9)), target)
        loss.backward()
        assert len(runs) == (2 if checkpointing else 1), "the layer runs again in the backward pass"
        return loss, {name: p.grad for name, p in model.inflation.named_parameters()}

    loss, gradients = loss_and_gradients(False)
    again, recomputed = loss_and_gradients(True)
    assert torch.equal(loss, again)
    assert gradients.keys() == recomputed.keys()
    for key, gradient in gradients.items():
        assert gradient is not None and gradient.any(), key
        torch.testing.assert_close(recomputed[key], gradient, atol=1e-6, rtol=1e-4)


def observed(model, rows, frames, attached=None, penalty=None):
    attached = [Attached(model.inflation)] * bool(model.inflation) if attached is None else attached
    return model.observe(*rows, Clip.of(frames), None, attached, penalty)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resampling", "everything"])
def test_what_is_observed_is_what_forward_returns(unet, name):
    model, rows = InflatedUNet(copy.deepcopy(unet), inflation(PARTS[name], unet, trained=True)), given(5, clips=2)
    prediction = model(*rows, Clip.of(5))
    assert torch.equal(observed(model, rows, 5).prediction, prediction)
    with_penalty = observed(model, rows, 5, penalty=lambda q, k, frames: q.mean())
    assert torch.equal(with_penalty.prediction, prediction)
    assert observed(model, rows, 5).penalties == []


@torch.no_grad()
def test_with_nothing_attached_it_is_the_image_model_and_with_strengths_it_is_that_much_of_a_clip(unet):
    config = InflationConfig(temporal=Temporal(), mapping=Mapping(), resampling=Resampling(LEVELS))
    model, rows = InflatedUNet(copy.deepcopy(unet), inflation(config, unet, trained=True)), given(5)
    assert torch.equal(observed(model, rows, 5, attached=[]).prediction, images(unet, *rows))
    mapped = observed(model, rows, 5, [Attached(model.inflation, temporal=0.0)]).prediction
    sample, *others = rows
    added = model.inflation.at("sample", "mapping")(sample, 5)
    torch.testing.assert_close(mapped, images(unet, sample + added, *others), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("halved", [True, False])
def test_the_middle_is_what_the_middle_block_puts_out(unet, halved):
    """At the frame rate of the coarsest level; with the block that follows it there."""
    temporal = Temporal(levels=((), (), (), ("convolution",)), middle=True)
    config = InflationConfig(temporal, resampling=Resampling(LEVELS) if halved else None)
    model, rows = InflatedUNet(copy.deepcopy(unet), inflation(config, unet, trained=True)), given(9, clips=2)
    seen, frames = [], 2 if halved else 9
    model.unet.mid_block.resnets[1].register_forward_hook(lambda layer, given, out: seen.append(out))
    middle = observed(model, rows, 9).middle
    (expected,) = seen
    assert len(expected) == 2 * frames
    block = model.inflation.at("middle_block.2", "convolution")
    assert torch.equal(middle, expected + block(expected, frames))


@torch.no_grad()
def test_without_parts_the_middle_is_that_of_diffusers(unet):
    rows, seen = given(3), []
    hook = unet.mid_block.register_forward_hook(lambda layer, given, out: seen.append(out))
    images(unet, *rows)
    hook.remove()
    middle = observed(InflatedUNet(copy.deepcopy(unet)), rows, 3).middle
    torch.testing.assert_close(middle, seen[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_penalty_is_asked_of_every_self_attention_on_the_way_up_in_order(unet):
    """With the queries and keys that it attends with, the trained queries included, and the frames at its level."""
    config = InflationConfig(queries=Queries(3), resampling=Resampling((1, 2)))
    model, rows = InflatedUNet(copy.deepcopy(unet), inflation(config, unet, trained=True)), given(9, clips=2)
    asked, attended = [], {}
    for name, layer in model.unet.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k")):
            layer.register_forward_hook(lambda layer, x, y, name=name: attended.update({name: y}))

    def penalty(q, k, frames):
        asked.append((q, k, frames))
        return torch.tensor(float(len(asked)))

    found = observed(model, rows, 9, penalty=penalty)
    blocks = [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1" for i in (1, 2, 3) for j in (0, 1)]
    assert [tensor.item() for tensor in found.penalties] == [1, 2, 3, 4, 5, 6]
    assert [frames for _, _, frames in asked] == [5, 5, 9, 9, 9, 9]
    for block, (q, k, frames) in zip(blocks, asked):
        heads = model.unet.get_submodule(block).heads
        for got, kind in ((q, "to_q"), (k, "to_k")):
            expected = attended[f"{block}.{kind}"]
            assert len(expected) == 2 * frames
            assert torch.equal(got, expected.unflatten(-1, (heads, -1)).transpose(1, 2))
    assert len(attended) == 2 * (3 + 1 + 6), "those on the way down and in the middle are not asked"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_penalties_and_the_middle_have_gradients(unet, checkpointing):
    config = InflationConfig(Temporal(), queries=Queries(3), resampling=Resampling(LEVELS))
    made = inflation(config, unet, trained=True)
    model, rows = InflatedUNet(copy.deepcopy(unet), made, checkpointing=checkpointing), given(5)
    found = observed(model, rows, 5, penalty=lambda q, k, frames: (q @ k.mT).square().mean())

    def moved(loss):
        grads = torch.autograd.grad(loss, list(made.parameters()), retain_graph=True, allow_unused=True)
        return {name for (name, _), grad in zip(made.named_parameters(), grads) if grad is not None and grad.any()}

    first, last = "input_blocks.1.1.attention.proj_out.weight", "output_blocks.7.1.attention.proj_out.weight"
    by_middle, by_penalties = moved(found.middle.square().mean()), moved(sum(found.penalties))
    assert first in by_middle and not any(name.startswith("output_blocks") for name in by_middle)
    assert {first, "output_blocks.1.1.resampling.conv.weight"} <= by_penalties
    assert last in dict(made.named_parameters()).keys() - by_penalties, "it follows the last self-attention"
