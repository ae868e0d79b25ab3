"""MotionDirector's debiased loss against its formula."""

from dataclasses import replace

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from stillmotion.trainer.clips.batches import Batch, Plan, number_below
from stillmotion.trainer.losses.debias import debias_loss, debias_term, debiased, debiased_loss
from stillmotion.trainer.losses.denoising import noisy_rows, signal_of, velocity_weight
from stillmotion.trainer.losses.objective import Objective, Seen
from stillmotion.trainer.run.loop import update

FRAMES, PLAN = 5, Plan(seed=0, frames=5, cells=(3, 2))


def seen(plan, seeds=(3, 8)):
    rows = len(seeds) * FRAMES
    timesteps = torch.tensor([300, 850]).repeat_interleave(FRAMES)
    batch = Batch(*torch.randn(2, rows, 4, 2, 3), timesteps, torch.zeros(rows, 5, 16), FRAMES, seeds)
    return Seen(batch, None, torch.randn(rows, 4, 2, 3), torch.empty(0), [], None)


def anchors_of(seen):
    return [number_below(FRAMES, seed, "anchor") for seed in seen.batch.seeds]


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_it_is_the_formula_frame_by_frame(beta):
    predicted, target = torch.randn(2, 2, FRAMES, 4, 2, 3, dtype=torch.float64).float()
    anchors, expected = [4, 1], []
    for clip, anchor in enumerate(anchors):
        phi = [[(beta**2 + 1) ** 0.5 * rows[clip, i] - beta * rows[clip, anchor] for i in range(FRAMES)]
               for rows in (predicted, target)]  # fmt: skip
        expected.append(torch.stack([(a - b) ** 2 for a, b in zip(*phi)]).mean())
    torch.testing.assert_close(debiased_loss(predicted, target, anchors, beta), torch.stack(expected))


def test_what_all_frames_share_counts_less_and_what_differs_more():
    error = torch.randn(1, 1, 4, 2, 3)
    same = debiased(error.expand(1, FRAMES, 4, 2, 3), error)
    torch.testing.assert_close(same, (2**0.5 - 1) * error.expand_as(same))
    alone = torch.zeros(1, FRAMES, 4, 2, 3)
    alone[:, 2] = error
    assert debiased_loss(alone, 0 * alone, [0]) == pytest.approx(2 * alone.square().mean().item(), rel=1e-5)


def test_of_a_velocity_it_is_that_of_the_noise_over_the_signal():
    """ε = sqrt(ᾱ) v + sqrt(1 - ᾱ) z_t, of what is predicted and of the target."""
    plan = replace(PLAN, prediction="v_prediction")
    given = seen(plan)
    signal = signal_of(given.batch, plan).view(-1, 1, 1, 1)
    noise = signal.sqrt() * given.prediction + (1 - signal).sqrt() * noisy_rows(given.batch, plan)
    each = debiased_loss(*(rows.unflatten(0, (2, FRAMES)) for rows in (noise, given.batch.noise)), anchors_of(given))
    torch.testing.assert_close(debias_loss(plan, given), (each / signal[::FRAMES].flatten()).mean())


def test_it_has_the_weight_of_the_timestep_that_the_denoising_loss_has():
    given, plan = seen(PLAN), replace(PLAN, weighting="velocity")
    error = (given.prediction - given.batch.noise).unflatten(0, (2, FRAMES))
    each = debiased_loss(error, 0 * error, anchors_of(given))
    weighted = each * velocity_weight(signal_of(given.batch, plan)[::FRAMES])
    torch.testing.assert_close(debias_loss(plan, given), weighted.mean())


def test_a_first_frame_that_is_given_is_neither_anchor_nor_counted():
    plan = replace(PLAN, first_frame="clean")
    given = seen(plan)
    spoilt = given.prediction.clone()
    spoilt[::FRAMES] = 1e6
    assert debias_loss(plan, replace(given, prediction=spoilt)) == debias_loss(plan, given)
    assert debias_loss(PLAN, replace(given, prediction=spoilt)) > 1e6


def test_every_frame_is_an_anchor_once():
    assert {number_below(FRAMES, seed, "anchor") for seed in range(40)} == set(range(FRAMES))


def test_training_with_it_moves_every_part_and_logs_it():
    AcceleratorState._reset_state(True)
    training = tiny.tiny_training()
    plain = Objective(training.objective.network, training.plan)
    training.objective.terms = (debias_term(1.0, training.plan),)
    batch = tiny.source_of(training)(1, 0)
    both, alone = (objective(batch, 1) for objective in (training.objective, plain))
    assert both.total.item() == pytest.approx(alone.total.item() + both.parts["debias"].item(), rel=1e-5)
    assert "debias" in update(training, tiny.source_of(training), 1).parts
    tiny.run_steps(training, range(2, 5))
    assert not tiny.without_gradient(training)
