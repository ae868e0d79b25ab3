import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import tiny_run as tiny
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, DDPMScheduler
from stillmotion.networks.config import InflationConfig, Queries, Recurrence, Temporal
from stillmotion.samplers.schedules import alphas_cumprod
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import batch_for, clip_at, clips_hash, collate, draw, draw_picture, rows
from stillmotion.trainer.losses.denoising import add_noise, batch_loss, noisy_rows, prediction_loss
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run import optimiser
from stillmotion.trainer.run.checkpoints import read_state, restore, same, save_state, state_of
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.held_out import fixed_noise_loss, split_held_out
from stillmotion.trainer.run.loop import gradient_norm, start_training, train, update
from stillmotion.trainer.run.optimiser import Diverged, Schedule, make_optimizer
from stillmotion.trainer.run.requests import Requests
from torch import nn


def same_batches(a, b):
    return all(torch.equal(x, y) for x, y in ((a.latents, b.latents), (a.noise, b.noise), (a.text, b.text)))


def test_a_step_sees_the_same_however_its_clips_are_divided():
    clips, no_caption = tiny.tiny_clips()
    plan = tiny.tiny_plan(clips_per_step=4)
    whole = batch_for(plan, clips, no_caption, 4, 5, 0)
    halves = [batch_for(plan, clips, no_caption, 2, 5, number) for number in range(2)]
    assert len(torch.unique(whole.noise[:, 0, 0, 0])) == 4 * 4, "each frame of each clip has noise of its own"
    assert torch.equal(whole.noise, torch.cat([half.noise for half in halves]))
    assert torch.equal(whole.latents, torch.cat([half.latents for half in halves]))
    assert torch.equal(whole.timesteps, torch.cat([half.timesteps for half in halves]))


def test_a_step_sees_the_same_whatever_ran_before_and_other_things_at_other_steps():
    clips, no_caption = tiny.tiny_clips()
    first = batch_for(tiny.tiny_plan(), clips, no_caption, 2, 9, 0)
    torch.rand(7)
    assert same_batches(first, batch_for(tiny.tiny_plan(), clips, no_caption, 2, 9, 0))
    assert not torch.equal(first.noise, batch_for(tiny.tiny_plan(), clips, no_caption, 2, 10, 0).noise)
    assert not torch.equal(first.noise, batch_for(tiny.tiny_plan(seed=1), clips, no_caption, 2, 9, 0).noise)


def test_each_round_shows_every_clip_once_in_an_order_of_its_own():
    plan = tiny.tiny_plan(clips_per_step=2)
    order = [clip_at(plan, step, index, 5) for step in range(1, 21) for index in range(2)]
    rounds = [order[start : start + 5] for start in range(0, 40, 5)]
    assert all(sorted(seen) == [0, 1, 2, 3, 4] for seen in rounds)
    assert len({tuple(seen) for seen in rounds}) > 1


def test_windows_and_crops_reach_every_place_and_nothing_else():
    clips, no_caption = tiny.tiny_clips(count=1)
    seen = [draw(tiny.tiny_plan(), clips[0], no_caption, step, 0).latents for step in range(1, 200)]
    pieces = [
        clips[0].latents[f : f + 4, :, y : y + 6, x : x + 5] for f in range(3) for y in range(2) for x in range(2)
    ]
    found = {next(i for i, piece in enumerate(pieces) if torch.equal(piece, latents)) for latents in seen}
    assert found == set(range(12))


def test_offset_noise_is_one_number_for_each_channel_of_a_frame_and_changes_no_other_draw():
    clips, no_caption = tiny.tiny_clips()
    plain, offset = (draw(tiny.tiny_plan(offset_noise=o), clips[0], no_caption, 1, 0) for o in (0.0, 0.1))
    added = offset.noise - plain.noise
    assert torch.equal(offset.latents, plain.latents) and torch.equal(offset.timesteps, plain.timesteps)
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert 0.05 < added[..., 0, 0].std() < 0.2


def test_captions_are_dropped_at_the_rate_asked_for():
    clips, no_caption = tiny.tiny_clips()
    plan = tiny.tiny_plan(caption_dropout=0.1, clips_per_step=1)
    dropped = [torch.equal(draw(plan, clips[0], no_caption, step, 0).text[0], no_caption) for step in range(1, 2001)]
    assert sum(dropped) / 2000 == pytest.approx(0.1, abs=0.03)


def test_timesteps_cover_the_schedule_and_are_one_for_all_frames_of_a_clip():
    clips, no_caption = tiny.tiny_clips()
    times = torch.stack([draw(tiny.tiny_plan(), clips[0], no_caption, step, 0).timesteps for step in range(1, 1001)])
    assert (times == times[:, :1]).all()
    assert times.min() < 20 and times.max() > 979 and times.float().mean().sub(499.5).abs() < 30


def test_the_noise_schedule_is_that_of_stable_diffusion():
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert torch.equal(alphas_cumprod(), DDIMScheduler(**config).alphas_cumprod)
    x, noise, times = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        add_noise(x, noise, alphas_cumprod()[times]), DDPMScheduler(**config).add_noise(x, noise, times)
    )


def test_a_clean_first_frame_is_given_and_has_no_part_in_the_loss():
    batch = rows(torch.randn(4, 4, 6, 5), torch.randn(4, 4, 6, 5), torch.tensor(700), torch.zeros(5, 16))
    given = noisy_rows(batch, tiny.tiny_plan(first_frame="clean"))
    assert torch.equal(given[0], batch.latents[0])
    assert torch.equal(given[1:], noisy_rows(batch, tiny.tiny_plan())[1:])
    wrong_first = batch.noise.clone()
    wrong_first[0] += 100
    assert prediction_loss(wrong_first, batch.noise, 4, "clean").item() == 0
    assert prediction_loss(wrong_first, batch.noise, 4, "noisy").item() == pytest.approx(2500, rel=1e-5)


def test_the_loss_is_a_mean_per_clip():
    noise = torch.zeros(6, 4, 3, 2)
    predicted = torch.cat([torch.ones(3, 4, 3, 2), 2 * torch.ones(3, 4, 3, 2)])
    assert prediction_loss(predicted, noise, 3, "noisy").tolist() == [1.0, 4.0]


@pytest.mark.parametrize("timestep", [20, 500])
def test_velocity_weighting_gives_the_error_of_v(timestep):
    batch = rows(torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.tensor(timestep), torch.zeros(5, 16))
    share = alphas_cumprod()[timestep]
    signal, spread = share.sqrt(), (1 - share).sqrt()

    def guess(sample, *_):
        return 0.9 * sample

    guessed = guess(noisy_rows(batch, tiny.tiny_plan()))
    guessed_latents = (noisy_rows(batch, tiny.tiny_plan()) - spread * guessed) / signal
    v, guessed_v = signal * batch.noise - spread * batch.latents, signal * guessed - spread * guessed_latents
    loss = batch_loss(guess, batch, replace(tiny.tiny_plan(), weighting="velocity"))
    torch.testing.assert_close(loss[0], (v - guessed_v).square().mean(), rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_then_falls_in_straight_lines():
    schedule = Schedule(steps=100, learning_rate=1.0, warm_up=20)
    assert [schedule.at(step) for step in (1, 10, 20)] == [0.05, 0.5, 1.0]
    assert schedule.at(60) == pytest.approx(41 / 81) and schedule.at(100) == pytest.approx(1 / 81)
    assert max(Schedule(6, 1.0, warm_up=100).at(step) for step in range(1, 7)) == 1.0
    assert Schedule(1, 1.0).at(1) == 1.0


def test_gates_move_ten_times_faster():
    training = tiny.tiny_training()
    tiny.run_steps(training, [1])
    rates = {group["factor"]: (group["lr"], len(group["params"])) for group in training.raw_optimizer.param_groups}
    gates = [name for name, _ in training.inflation.named_parameters() if name.endswith("gamma")]
    assert rates[10.0] == (pytest.approx(10 * 1e-2 / 2), len(gates)) and len(gates) == 4
    assert rates[1.0][0] == pytest.approx(1e-2 / 2)


def test_exactly_the_inflation_is_trained_and_all_of_it_moves():
    training = tiny.tiny_training()
    frozen = {name: p.clone() for name, p in training.objective.network.unet.named_parameters() if "lora" not in name}
    tiny.run_steps(training, [1, 2, 3])
    now = dict(training.objective.network.unet.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())
    assert tiny.without_gradient(training) == []


def test_accumulated_batches_are_one_large_batch():
    whole = tiny.tiny_training(batch_size=2)
    losses = tiny.run_steps(whole, [1])
    parts = tiny.tiny_training(accumulation=2)
    assert tiny.run_steps(parts, [1]) == pytest.approx(losses, abs=1e-5)
    for a, b in zip(whole.inflation.parameters(), parts.inflation.parameters()):
        first_moments = (run.raw_optimizer.state[p]["exp_avg"] for run, p in ((whole, a), (parts, b)))
        torch.testing.assert_close(*first_moments, atol=1e-6, rtol=1e-3)


def test_checkpointed_layers_give_the_same_loss_and_step():
    plain, recomputed = tiny.tiny_training(), tiny.tiny_training(model=tiny.tiny_model(checkpointing=True))
    assert tiny.run_steps(plain, [1, 2]) == pytest.approx(tiny.run_steps(recomputed, [1, 2]), abs=1e-6)


def test_the_loss_falls_on_a_clip_that_is_learnt_by_heart():
    clips, no_caption = tiny.tiny_clips(count=1)
    still = [replace(clips[0], latents=clips[0].latents[:1].expand(4, -1, -1, -1).contiguous())]
    training = tiny.tiny_training(plan=tiny.tiny_plan(clips_per_step=1), steps=30, ema=None)
    before = fixed_noise_loss(training, still)
    source = partial(batch_for, training.plan, still, no_caption, 1)
    for step in range(1, 31):
        update(training, source, step)
    assert fixed_noise_loss(training, still) < 0.8 * before


def test_the_fixed_noise_loss_is_the_same_every_time():
    training = tiny.tiny_training()
    clips, _ = tiny.tiny_clips()
    first = fixed_noise_loss(training, clips)
    torch.rand(3)
    assert fixed_noise_loss(training, clips) == first
    tiny.run_steps(training, [1])
    assert fixed_noise_loss(training, clips) != first


def test_held_out_clips_are_not_trained_on():
    seen, held_out = split_held_out(tiny.tiny_clips(count=10)[0], 3)
    assert [clip.name for clip in held_out] == ["1", "5", "8"]
    assert len(seen) == 7 and not {clip.name for clip in seen} & {clip.name for clip in held_out}
    with pytest.raises(ValueError, match="--held-out is 3, but there are 3 clips"):
        split_held_out(tiny.tiny_clips()[0], 3)


def test_nan_stops_before_the_update_and_names_parameter_and_step():
    training = tiny.tiny_training()
    tiny.run_steps(training, [1, 2])
    clips, no_caption = tiny.tiny_clips()
    before = {name: tensor.clone() for name, tensor in training.inflation.state_dict().items()}
    broken = [replace(clip, latents=clip.latents * float("nan")) for clip in clips]
    with pytest.raises(Diverged, match=r"Step 3 .*loss is nan and the gradient of \S+\.(down|qkv|norm|gamma)"):
        update(training, partial(batch_for, training.plan, broken, no_caption, 1), 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in training.inflation.state_dict().items())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_one_poisoned_gradient_stops_before_the_update_and_is_the_one_named(poison):
    training = tiny.tiny_training()
    before = {name: tensor.clone() for name, tensor in training.inflation.state_dict().items()}
    name, parameter = list(training.inflation.named_parameters())[-2]
    parameter.register_hook(lambda gradient: torch.full_like(gradient, poison))
    with pytest.raises(Diverged, match=rf"Step 1 .*the gradient of {re.escape(name)} is not finite"):
        tiny.run_steps(training, [1])
    assert all(torch.equal(before[name], tensor) for name, tensor in training.inflation.state_dict().items())


def test_gradients_are_clipped_to_norm_one_and_the_norm_before_is_reported():
    training = tiny.tiny_training()
    seen = []
    training.raw_optimizer.register_step_pre_hook(
        lambda *_: seen.append(gradient_norm(list(training.inflation.parameters())))
    )
    for parameter in training.inflation.parameters():
        parameter.register_hook(lambda gradient: 1000 * gradient)
    norm = update(training, tiny.source_of(training), 1).gradient_norm
    assert norm > 10 and seen == [pytest.approx(1.0, abs=1e-4)]


def with_loss_scale(training, scale):
    """Turns a run into one of fp16's, as far as gradients are concerned."""
    accelerator, scaler = training.accelerator, torch.amp.GradScaler("cpu", init_scale=scale)
    accelerator.native_amp, accelerator.state._mixed_precision, accelerator.scaler = True, "fp16", scaler
    training.optimizer = AcceleratedOptimizer(training.raw_optimizer, device_placement=False, scaler=scaler)
    accelerator._optimizers = [training.optimizer]
    return scaler


def test_a_loss_scale_changes_no_norm_and_is_halved_until_gradients_are_finite():
    training = tiny.tiny_training()
    norm = update(training, tiny.source_of(training), 1).gradient_norm
    training = tiny.tiny_training()
    before = {name: tensor.clone() for name, tensor in training.inflation.state_dict().items()}
    scaler = with_loss_scale(training, 4.0)
    hook = next(training.inflation.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    tiny.run_steps(training, [1, 2])
    assert scaler.get_scale() == 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in training.inflation.state_dict().items())
    hook.remove()
    assert update(training, tiny.source_of(training), 1).gradient_norm == pytest.approx(norm, rel=1e-4)
    next(training.inflation.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match="Step 4"):
        update(training, tiny.source_of(training), 4)


def test_one_infinite_gradient_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    model[1].weight.grad[0, 1] = float("inf")
    with pytest.raises(Diverged, match=r"the gradient of 1\.weight is not finite"):
        optimiser.check_finite(7, 0.5, float("inf"), model.named_parameters())


def test_eight_bit_without_its_library_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        make_optimizer(nn.Linear(1, 1), eight_bit=True)


def test_eight_bit_trains_and_resumes_to_the_bit(tmp_path):
    pytest.importorskip("bitsandbytes")

    def training():
        AcceleratorState._reset_state(True)
        objective = Objective(tiny.tiny_model(), tiny.tiny_plan())
        return start_training(Accelerator(cpu=True), objective, Schedule(8, 1e-2, 2), eight_bit=True)

    whole, resumed = training(), training()
    tiny.run_steps(whole, [1, 2, 3])
    assert any(state["state1"].dtype == torch.uint8 for state in whole.raw_optimizer.state.values())
    path = save_state(tmp_path, state_of(whole, {}))
    losses = tiny.run_steps(whole, [4, 5, 6])
    restore(resumed, read_state(path))
    assert tiny.run_steps(resumed, [4, 5, 6]) == losses
    assert same(state_of(whole, {})["weights"], state_of(resumed, {})["weights"])


@pytest.mark.parametrize("file, saves, steps", [("save", [3], 6), ("save_quit", [3], 3)])
def test_files_in_the_folder_save_and_stop(tmp_path, file, saves, steps):
    training = tiny.tiny_training(steps=6)
    saved, seen = [], []

    def after_step(report, save_wanted):
        seen.append(report.step)
        if save_wanted:
            saved.append(report.step)
        if report.step == 2:
            (tmp_path / file).touch()

    finished = train(training, tiny.source_of(training), Requests(tmp_path), after_step)
    assert saved == saves and len(seen) == steps and finished == (steps == 6)
    assert not (tmp_path / file).exists()


@pytest.mark.parametrize(
    "config", [InflationConfig(queries=Queries(None)), InflationConfig(recurrence=Recurrence("paper_rnn"))]
)
def test_every_kind_of_part_trains(config):
    training = tiny.tiny_training(model=tiny.tiny_model(config), steps=4)
    tiny.run_steps(training, [1, 2, 3])
    assert tiny.without_gradient(training) == []


def test_the_fingerprint_tells_clips_apart():
    clips, _ = tiny.tiny_clips()
    assert clips_hash(clips) == clips_hash(tiny.tiny_clips()[0])
    assert clips_hash(clips) != clips_hash([replace(clips[0], caption="other"), *clips[1:]])
    assert clips_hash(clips) != clips_hash(clips[::-1])


def full_training(**more):
    """One that trains the image model too; its gradients are far above the clip of 1."""
    unet = tiny.tiny_unet()
    model = InflatedUNet(unet, fresh_inflation(InflationConfig(Temporal()), structure_of(unet), 0), spatial="full")
    AcceleratorState._reset_state(True)
    objective = Objective(model, tiny.tiny_plan())
    return start_training(Accelerator(cpu=True), objective, Schedule(8, 1e-2, warm_up=2), **more)


def pictures(training):
    """A source of micro-batches of pictures alone."""
    clips, no_caption = tiny.tiny_clips()
    return lambda step, number: collate([draw_picture(training.plan, clips[0], no_caption, step, number)])


def test_a_step_of_pictures_moves_the_image_model_and_nothing_over_time():
    """Not through the moments of the steps before either."""
    training = full_training(ema=None)
    update(training, tiny.source_of(training), 1)
    before = {name: tensor.clone() for name, tensor in training.weights.state_dict().items()}
    update(training, pictures(training), 2)
    moved = {name for name, tensor in training.weights.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("spatial.") for name in moved)


def test_the_factor_on_spatial_gradients_acts_before_the_clip_of_their_norm():
    trainings = full_training(), full_training(spatial_grad_scale=0.2)
    whole, scaled = (update(training, pictures(training), 1).gradient_norm for training in trainings)
    assert scaled == pytest.approx(0.2 * whole, rel=1e-5)


def test_the_average_is_of_the_image_model_too():
    training = full_training(ema=0.5)
    update(training, pictures(training), 1)
    averaged, now = training.ema.module.state_dict(), training.weights.state_dict()
    assert averaged.keys() == now.keys() and any(name.startswith("spatial.") for name in now)
