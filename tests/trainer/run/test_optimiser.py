"""The optimizer's own numbers: what a small gradient moves, how fast when, and what the EMA follows."""

import pytest
import torch
from stillmotion.trainer.run.optimiser import EPS, Schedule, is_gate, make_ema, make_optimizer, set_learning_rate
from torch import nn

STEPS, RATE = 20, 1e-3


def moved(gradient, eight_bit=False):
    """How far AdamW takes a weight in so many steps of one gradient, of the learning rates of these steps."""
    layer = nn.Linear(64, 64, bias=False)  # bitsandbytes keeps smaller tensors in 32 bits
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, eight_bit)
    set_learning_rate(optimizer, RATE)
    for _ in range(STEPS):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
    return -layer.weight.mean().item() / (STEPS * RATE)


@pytest.mark.parametrize("gradient", [1e-3, 1e-8, 1e-10, 7e-10])
def test_a_small_gradient_moves_a_weight_as_far_as_a_large_one(gradient):
    """Frame-wise tokens have gradients of 1e-10: with AdamW's own eps of 1e-8 they would go a hundredth of the way."""
    assert moved(gradient) == pytest.approx(1, rel=1e-2)


def test_every_group_has_that_eps_and_what_was_measured_with_it():
    named = {"weight": nn.Parameter(torch.zeros(3)), "gamma": nn.Parameter(torch.zeros(()))}
    optimizer = make_optimizer(nn.ParameterDict(named))
    assert [group["eps"] for group in optimizer.param_groups] == [EPS, EPS] and EPS == 1e-15
    assert {(group["betas"], group["weight_decay"]) for group in optimizer.param_groups} == {((0.9, 0.999), 1e-2)}
    assert [group["factor"] for group in optimizer.param_groups] == [1.0, 10.0]
    assert is_gate("text.attn2.tokens.theta") and is_gate("mix.gamma") and not is_gate("proj_out.weight")


def test_eight_bit_adamw_takes_that_eps():
    pytest.importorskip("bitsandbytes")
    optimizer = make_optimizer(nn.Linear(64, 64), eight_bit=True)
    assert {group["eps"] for group in optimizer.param_groups} == {EPS}


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_line_to_its_final_one():
    plain, harivo = Schedule(100, 1e-4, warm_up=10), Schedule(100, 1e-4, warm_up=10, final=1e-5)
    assert [plain.at(step) for step in (1, 5, 10)] == pytest.approx([1e-5, 5e-5, 1e-4])
    assert [harivo.at(step) for step in (1, 5, 10)] == pytest.approx([1e-5, 5e-5, 1e-4])
    assert plain.at(55) == pytest.approx(1e-4 * 46 / 91) and plain.at(101) == 0
    assert harivo.at(55) == pytest.approx(1e-5 + 9e-5 * 46 / 91) and harivo.at(101) == pytest.approx(1e-5)
    falls = [harivo.at(step) - harivo.at(step + 1) for step in range(10, 100)]
    assert falls == pytest.approx([falls[0]] * 90) and falls[0] > 0
    assert harivo.path(3) == pytest.approx(harivo.at(1) + harivo.at(2) + harivo.at(3))


def test_the_ema_forgets_its_start_and_follows():
    layer = nn.Linear(1, 1, bias=False)
    average = make_ema(layer, 0.9)
    values = []
    for value in [1.0] + [3.0] * 60:
        layer.weight.data.fill_(value)
        average.update_parameters(layer)
        values.append(average.module.weight.item())
    assert values[0] == 1.0
    assert values[1] == pytest.approx(3 + (1 - 3) * 2 / 11)  # the second update, with d = (1 + 1) / (10 + 1)
    assert values[-1] == pytest.approx(3.0, abs=0.02)
