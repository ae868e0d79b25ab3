"""HARIVO's losses against their formulas, computed from what hooks see inside diffusers' own U-Net."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import tiny_run as tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Mapping, Resampling, Temporal, Tokens
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Batch, Plan, batch_for
from stillmotion.trainer.losses.contrastive import frame_pair
from stillmotion.trainer.losses.denoising import noisy_rows
from stillmotion.trainer.losses.objective import Losses, Objective, Term
from stillmotion.trainer.options import FewShotOptions, InflateOptions
from stillmotion.trainer.run.checkpoints import same
from stillmotion.trainer.run.estimate import measure_activations
from stillmotion.trainer.run.loop import start_training, update
from stillmotion.trainer.run.optimiser import Schedule
from stillmotion.trainer.run.terms import terms_of
from torch import nn
from torch.nn import functional as F

FRAMES, COARSE, CONTEXT = 5, 3, 16
CONFIG = InflationConfig(
    Temporal(), resampling=Resampling((0,)), mapping=Mapping(), tokens=Tokens(FRAMES, count=2, neutral=False)
)
PLAN = Plan(seed=0, frames=FRAMES, cells=(7, 6))
ALL = {"regularisation": 0.3, "trs": 0.2, "contrastive": 0.1, "ramp": 0}
DECODER = [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1" for i in (0, 1) for j in (0, 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )


@pytest.fixture
def model(unet):
    """Every part of it has learnt something; the coarse level has 3 of 5 frames."""
    inflation = Inflation(CONFIG, structure_of(unet))
    for parameter in inflation.parameters():
        nn.init.normal_(parameter, std=0.1)
    return InflatedUNet(copy.deepcopy(unet), inflation)


def batch_of(clips=2):
    rows = clips * FRAMES
    text = torch.randn(clips, 77, CONTEXT).repeat_interleave(FRAMES, dim=0)
    timesteps = torch.tensor([300, 800, 50][:clips]).repeat_interleave(FRAMES)
    return Batch(torch.randn(rows, 4, 6, 7), torch.randn(rows, 4, 6, 7), timesteps, text, FRAMES, (3, 8, 5)[:clips])


def filled(objective, count=40):
    queue = contrastive_of(objective).queue
    channels = queue.entries.shape[1]
    queue.push(F.normalize(torch.randn(count, channels), dim=-1))
    return objective


def harivo(model, plan=PLAN, **weights):
    """The objective that these options of `inflate` make."""
    options = InflateOptions(videos="v", base="b", preset="animatediff", **weights)
    return Objective(model, plan, terms_of(options, model, plan))


def contrastive_of(objective):
    return objective.modules_of_terms["contrastive"]


def gradients(objective, loss):
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))


def l_reg(unet, model, batch, detach=False):
    """(1 - t/T) times the squared distance of the clip from what diffusers makes of each of its mapped frames."""
    noisy = noisy_rows(batch, PLAN)
    video = model(noisy, batch.timesteps, batch.text, Clip.of(FRAMES))
    mapped = noisy + model.inflation.at("sample", "mapping")(noisy, FRAMES)
    image = unet.requires_grad_(False)(mapped, batch.timesteps, batch.text).sample
    distances = (video - (image.detach() if detach else image)).square().unflatten(0, (-1, FRAMES)).flatten(1).mean(1)
    return sum((1 - t / 1000) * d for t, d in zip((300, 800), distances)) / 2


@pytest.mark.parametrize("detach", [False, True])
def test_l_reg_is_the_formula_in_value_and_gradient(unet, model, detach):
    batch, objective = batch_of(), harivo(model, regularisation=0.3, detach_image=detach)
    losses, expected = objective(batch, 1), l_reg(unet, model, batch, detach)
    torch.testing.assert_close(losses.parts["regularisation"], expected.detach())
    ours = gradients(objective, losses.total - losses.parts["simple"])
    theirs = gradients(objective, Objective(model, PLAN)(batch, 1).total + 0.3 * expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_detaching_the_image_stops_the_mappings_gradient_through_it_and_nothing_else(model):
    batch, (whole, part) = batch_of(), ({"regularisation": 1, "detach_image": detach} for detach in (False, True))
    (loss, all_of_it), (same_loss, without_image) = (
        (losses.total, gradients(objective, losses.total))
        for objective in (harivo(model, **weights) for weights in (whole, part))
        for losses in [objective(batch, 1)]
    )
    assert torch.equal(loss, same_loss)
    for name, gradient in all_of_it.items():
        assert torch.equal(gradient, without_image[name]) != ("mapping" in name), name


def l_trs(model, batch, reduction):
    """From the attention maps of the decoder, computed whole from what its self-attentions are given."""
    given, frames = {}, {DECODER[0]: COARSE, DECODER[1]: COARSE, DECODER[2]: FRAMES, DECODER[3]: FRAMES}
    hooks = [
        model.unet.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0]}))
        for name in DECODER
    ]
    model(noisy_rows(batch, PLAN), batch.timesteps, batch.text, Clip.of(FRAMES))
    [hook.remove() for hook in hooks]
    assert list(given) == DECODER
    losses = []
    for name, tokens in given.items():
        layer = model.unet.get_submodule(name)
        q, k = (to(tokens).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for to in (layer.to_q, layer.to_k))
        maps = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1).unflatten(0, (-1, frames[name]))
        changes = (maps[:, 1:] - maps[:, :-1]).abs().sum(-1)  # clips, frames - 1, heads, queries
        losses.append(changes.mean() if reduction == "row_l1" else changes.sum() / len(changes))
    weighted = sum(i / 4 * loss for i, loss in enumerate(losses, start=1))
    return weighted / (10 / 4) if reduction == "row_l1" else weighted


@pytest.mark.parametrize("reduction", ["row_l1", "sum"])
def test_l_trs_weighs_the_maps_of_the_decoder_layers_in_their_order(model, reduction):
    batch, objective = batch_of(), harivo(model, trs=1, trs_reduction=reduction, ramp=0)
    losses, expected = objective(batch, 1), l_trs(model, batch, reduction)
    torch.testing.assert_close(losses.parts["trs"], expected.detach())
    ours, theirs = gradients(objective, losses.total), gradients(objective, expected)
    plain = gradients(objective, Objective(model, PLAN)(batch, 1).total)
    for name, gradient in theirs.items():
        rest = torch.zeros_like(ours[name]) if gradient is None else gradient
        torch.testing.assert_close(ours[name], plain[name] + rest, atol=1e-4 * rest.abs().max(), rtol=1e-4)


def test_the_contrastive_loss_sees_two_coarse_frames_of_each_clip(model):
    batch, objective = batch_of(), filled(harivo(model, contrastive=1, ramp=0))
    seen = []
    model.unet.mid_block.resnets[1].register_forward_hook(lambda layer, given, out: seen.append(out))
    losses = objective(batch, 1)
    clips = seen[0].unflatten(0, (2, COARSE))
    z = torch.stack(
        [
            contrastive_of(objective).head(clip[i][None])[0]
            for clip, s in zip(clips, (3, 8))
            for i in frame_pair(COARSE, s)
        ]
    )
    torch.testing.assert_close(losses.kept["contrastive"], z.detach())
    rows = [(z[0], z[1]), (z[2], z[3])]
    negatives = contrastive_of(objective).queue.entries
    each = [-a @ b / 0.1 + sum(torch.exp(negatives @ x / 0.1).sum().log() for x in (a, b)) / 2 for a, b in rows]
    torch.testing.assert_close(losses.parts["contrastive"], (sum(each) / 2).detach())
    assert {frame_pair(COARSE, s) for s in (3, 8)} != {frame_pair(FRAMES, s) for s in (3, 8)}


def test_the_total_is_the_weighted_sum_with_losses_that_rise_and_one_that_comes_at_every_third_step(model):
    weights = {"regularisation": 0.3, "regularise_every": 3, "trs": 0.2, "contrastive": 0.1, "ramp": 4}
    batch, objective = batch_of(), filled(harivo(model, **weights))
    with torch.no_grad():
        for step, rising in ((1, 0.25), (2, 0.5), (3, 0.75), (4, 1), (6, 1)):
            total, parts, _ = objective(batch, step)
            assert ("regularisation" in parts) == (step % 3 == 0)
            expected = parts["simple"] + rising * (0.2 * parts["trs"] + 0.1 * parts["contrastive"])
            expected += 3 * 0.3 * parts.get("regularisation", 0)
            torch.testing.assert_close(total, expected)
            assert torch.equal(parts["simple"], Objective(model, PLAN)(batch, step).total)


@pytest.mark.parametrize("entries, clips", [(0, 1), (0, 2), (40, 1)])
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(model, entries, clips):
    """Also where the contrastive loss has nothing to compare with: processes wait for every gradient of each other."""
    objective = filled(harivo(model, **ALL), entries)
    objective(batch_of(clips), 1).total.backward()
    trained = {f"network.inflation.{name}" for name, _ in model.inflation.named_parameters()}
    head = "modules_of_terms.contrastive.head"
    trained |= {f"{head}.{name}" for name, _ in objective.get_submodule(head).named_parameters()}
    alone = (entries, clips) == (0, 1)
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if name in trained:
            assert parameter.grad.any() != (alone and name.startswith(head)), name


def test_with_weights_of_0_it_is_the_denoising_loss_to_the_bit(model):
    batch, ours, plain = batch_of(), harivo(model), Objective(model, PLAN)
    ours_total, plain_total = ours(batch, 1).total, plain(batch, 1).total
    assert torch.equal(ours_total, plain_total)
    expected = gradients(plain, plain_total)
    for name, gradient in gradients(ours, ours_total).items():
        assert torch.equal(gradient, expected[name])
    assert ours.state() == plain.state() == {} and ours.state_dict().keys() == plain.state_dict().keys()


def test_checkpointing_changes_neither_loss_nor_gradients(model):
    batch, objective = batch_of(), filled(harivo(model, **ALL))
    runs = []
    model.unet.up_blocks[1].attentions[1].norm.register_forward_pre_hook(lambda *_: runs.append(1))
    plain = objective(batch, 1)
    expected = gradients(objective, plain.total)
    model.checkpointing = True
    recomputed = objective(batch, 1)
    got = gradients(objective, recomputed.total)
    assert len(runs) == 2 + 4, "in the clip and in its images, and each once more in the backward pass"
    assert torch.equal(recomputed.total, plain.total)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


def test_what_a_term_keeps_comes_back_in_the_order_of_the_places_of_the_clips(model):
    """Of three processes with two micro-batches of two clips each, which the accelerator brings one after the other."""

    class Remembering(nn.Module):
        def forward(self, seen):
            return seen.prediction.new_zeros(())

        def after_step(self, kept):
            self.kept = kept

        def state(self):
            return {}

        def restore(self, state):
            pass

    place = torch.arange(3 * 2 * 2 * 2).view(2, 3, 4, 1).float()  # micro-batches, processes, two frames of two clips
    objective = Objective(model, PLAN, [Term("fourth", 1.0, remembering := Remembering())])
    losses = [Losses(torch.zeros(()), {}, {"fourth": rows}) for rows in place[:, 0]]
    objective.after_step(losses, lambda mine: torch.cat([mine + 4 * process for process in range(3)]))
    assert remembering.kept.flatten().tolist() == list(range(24))


def test_a_term_of_ones_own_is_added_by_its_weight_and_logged_by_its_name(model):
    batch = batch_of()
    term = Term("brightness", 0.5, lambda seen: seen.prediction.mean().square(), every=2)
    objective, plain = Objective(model, PLAN, [term]), Objective(model, PLAN)
    with torch.no_grad():
        without, there = objective(batch, 1), objective(batch, 2)
        expected = model(noisy_rows(batch, PLAN), batch.timesteps, batch.text, Clip.of(FRAMES)).mean().square()
        assert torch.equal(without.total, plain(batch, 1).total) and set(without.parts) == {"simple"}
        torch.testing.assert_close(there.parts["brightness"], expected)
        torch.testing.assert_close(there.total, there.parts["simple"] + 2 * 0.5 * expected)
    assert objective.everys == [2]


def test_attention_maps_are_looked_at_where_a_term_asks_alone(model, monkeypatch):
    asked = []
    observe = InflatedUNet.observe
    monkeypatch.setattr(InflatedUNet, "observe", lambda *given: asked.append(given[7]) or observe(*given))
    with torch.no_grad():
        harivo(model, regularisation=1, contrastive=1)(batch_of(), 1)
        assert asked == [None, None]
        harivo(model, trs=1)(batch_of(), 1)
        assert asked[2] is not None


def test_each_term_is_given_what_its_own_look_at_the_attention_maps_found_at_its_own_steps(model):
    seen = {}

    def watcher(name, every):
        def function(view):
            seen[name] = [number.item() for number in view.penalties]
            return view.prediction.new_zeros(())

        return Term(name, 1.0, function, every, penalty=lambda q, k, frames: q.new_tensor(10.0 * every + frames))

    terms = [watcher("first", 2), Term("none", 1.0, lambda view: view.prediction.mean()), watcher("second", 3)]
    objective, frames = Objective(model, PLAN, terms), [COARSE, COARSE, FRAMES, FRAMES]
    for step, expected in ((1, {}), (2, {"first": 20}), (3, {"second": 30}), (6, {"first": 20, "second": 30})):
        seen.clear()
        with torch.no_grad():
            objective(batch_of(), step)
        assert seen == {name: [base + count for count in frames] for name, base in expected.items()}


def test_what_a_term_has_of_its_own_is_saved_and_restored_by_its_name(model):
    saved, fresh = filled(harivo(model, **ALL)), harivo(model, replace(PLAN, seed=1), **ALL)
    assert saved.state().keys() == {"contrastive"}
    fresh.restore({**saved.state(), "another": {}})
    assert same(fresh.state(), saved.state()) and len(contrastive_of(fresh).queue) == 40


def test_options_without_losses_have_no_terms(model):
    options = FewShotOptions(videos="v", base="b")
    assert terms_of(options, model, PLAN) == []


def training_of(batch_size, accumulation):
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    weights = {**ALL, "contrastive": 1.0}
    objective = harivo(tiny.tiny_model(InflationConfig(Temporal())), tiny.tiny_plan(), **weights)
    return start_training(accelerator, objective, Schedule(8, 1e-3), batch_size=batch_size)


def test_accumulated_batches_are_remembered_as_one_large_batch():
    queues = []
    for sizes in ((2, 1), (1, 2)):
        training = training_of(*sizes)
        update(training, partial(batch_for, training.plan, *tiny.tiny_clips(), training.batch_size), 1)
        queues.append(contrastive_of(training.objective).queue.entries)
    assert queues[0].shape == (4, 64)
    torch.testing.assert_close(*queues)


def test_the_head_is_that_of_the_seed(model):
    def head(seed):
        return contrastive_of(harivo(model, replace(PLAN, seed=seed), **ALL)).head.state_dict()

    torch.manual_seed(3)
    first, again, other = head(0), head(0), head(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_memory_of_a_resumed_run_can_be_estimated(model):
    """Its queue holds numbers, while all else that the estimate runs on has a shape only."""
    objective = filled(harivo(model, **ALL))
    assert measure_activations(objective, (1, FRAMES), PLAN.cells) > 0
    queue = contrastive_of(objective).queue
    assert type(queue.entries) is torch.Tensor and len(queue) == 40
