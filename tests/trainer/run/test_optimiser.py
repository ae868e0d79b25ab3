"""The optimizer's own numbers: what a small gradient moves, how fast when, and what the EMA follows."""

import pytest
import torch
from stillmotion.trainer.run.optimiser import (
    EIGHT_BIT_EPS,
    EPS,
    Schedule,
    in_eight_bits,
    is_gate,
    make_ema,
    make_optimizer,
    set_learning_rate,
)
from torch import nn

STEPS, RATE = 20, 1e-3


def moved(gradient, eight_bit=False, part="tokens"):
    """How far AdamW takes a weight in so many steps of one gradient, of the learning rates of these steps."""
    model = nn.ModuleDict({part: nn.Linear(64, 64, bias=False)})  # bitsandbytes keeps smaller tensors in 32 bits
    weight = model[part].weight
    nn.init.zeros_(weight)
    optimizer = make_optimizer(model, eight_bit)
    set_learning_rate(optimizer, RATE)
    for _ in range(STEPS):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return -weight.mean().item() / (STEPS * RATE)


@pytest.mark.parametrize("gradient", [1e-3, 1e-8, 1e-10, 7e-10])
@pytest.mark.parametrize("part", ["attention", "tokens"])
def test_a_small_gradient_moves_a_weight_as_far_as_a_large_one(gradient, part):
    """Frame-wise tokens have gradients of 1e-10: with AdamW's own eps of 1e-8 they would go a hundredth of the way."""
    assert moved(gradient, part=part) == pytest.approx(1, rel=1e-2)


def test_every_group_has_that_eps_and_what_was_measured_with_it():
    named = {"weight": nn.Parameter(torch.zeros(3)), "gamma": nn.Parameter(torch.zeros(()))}
    optimizer = make_optimizer(nn.ParameterDict(named))
    assert [group["eps"] for group in optimizer.param_groups] == [EPS, EPS] and EPS == 1e-15
    assert {(group["betas"], group["weight_decay"]) for group in optimizer.param_groups} == {((0.9, 0.999), 1e-2)}
    assert [group["factor"] for group in optimizer.param_groups] == [1.0, 10.0]
    assert is_gate("text.attn2.tokens.theta") and is_gate("mix.gamma") and not is_gate("proj_out.weight")


def test_eight_bits_are_for_large_tensors_of_parts_whose_gradients_are_not_faint():
    large, small = nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(64, 63))
    assert in_eight_bits("input_blocks.1.1.temporal.attention.weight", large)
    assert not in_eight_bits("input_blocks.1.1.temporal.attention.weight", small)
    for name in (
        "network.inflation.text.tokens.first.weight",
        "input_blocks.1.1.blocks.0.attn1.recurrence.to_h.weight",
    ):
        assert not in_eight_bits(name, large)


def test_eight_bit_adamw_moves_faint_parts_as_far_and_keeps_its_own_eps_for_what_is_in_8_bits():
    pytest.importorskip("bitsandbytes")
    assert moved(1e-10, eight_bit=True) == pytest.approx(1, rel=1e-2)
    assert moved(1e-3, eight_bit=True, part="attention") == pytest.approx(1, rel=1e-2)
    assert moved(1e-10, eight_bit=True, part="attention") == pytest.approx(0.01, rel=2e-2)  # 1e-10 / (1e-10 + 1e-8)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("tokens", "attention")})
    optimizer = make_optimizer(model, eight_bit=True)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    types = {name: optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
    assert [name for name, dtype in types.items() if dtype == torch.uint8] == ["attention.weight"]
    assert {(group["bits"], group["eps"]) for group in optimizer.param_groups} == {(8, EIGHT_BIT_EPS), (32, EPS)}


def rounded(moments, codes):
    """Moments of one block as 8 bits hold them: the nearest code of the largest one's share, its sign kept."""
    share, codes = moments / moments.abs().max(), codes.contiguous()
    places = torch.searchsorted((codes[1:] + codes[:-1]) / 2, share)
    lost = torch.signbit(codes[places]) != torch.signbit(share)
    return codes[places - 1 * (lost & (share <= 0)) + 1 * (lost & (share > 0))] * moments.abs().max()


def largest_step(eps):
    """Of AdamW as bitsandbytes' CUDA kernel does it, in learning rates; half of the gradients are 0 at each step."""
    maps = pytest.importorskip("bitsandbytes.functional")
    signed, unsigned = maps.create_dynamic_map(signed=True), maps.create_dynamic_map(signed=False)
    torch.manual_seed(0)
    scales = torch.logspace(-6, -3, 256)
    first, second, largest = torch.zeros(256), torch.zeros(256), 0.0
    for step in range(1, STEPS + 1):
        gradient = torch.randn(256) * scales * (torch.rand(256) < 0.5)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        largest = max(largest, (unbiased[0] / (unbiased[1].sqrt() + eps)).abs().max().item())
        first, second = rounded(first, signed), rounded(second, unsigned)
    return largest


def test_moments_in_8_bits_need_an_eps_that_holds_what_their_rounding_loses():
    assert largest_step(EIGHT_BIT_EPS) < 100 < 1e6 < largest_step(EPS)


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


@pytest.mark.parametrize("scale, multiplier, expected", [(0.2, 1.0, 1.0), (1.0, 0.2, 0.2)])
def test_a_factor_on_gradients_is_divided_out_by_adamw_and_one_on_the_rate_is_not(scale, multiplier, expected):
    """HiGen's decay of 0.2 on the spatial gradients, as its code has it and as it was meant."""
    ways = []
    for factor, rate in ((1.0, 1.0), (scale, multiplier)):
        torch.manual_seed(0)
        model, target = torch.nn.Linear(8, 8), torch.randn(64, 8)
        start, inputs = model.weight.detach().clone(), torch.randn(64, 8)
        optimizer = make_optimizer(model, spatial=list(model.parameters()), spatial_rate=rate)
        for _ in range(300):
            set_learning_rate(optimizer, 1e-5)
            optimizer.zero_grad()
            (model(inputs) - target).square().mean().backward()
            torch._foreach_mul_([p.grad for p in model.parameters()], factor)
            optimizer.step()
        ways.append((model.weight.detach() - start).abs().mean().item())
    assert ways[1] / ways[0] == pytest.approx(expected, abs=0.01 if expected < 1 else 1e-4)


def test_weights_of_the_image_model_do_not_decay():
    model = torch.nn.ModuleDict({"spatial": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2)})
    optimizer = make_optimizer(model, spatial=list(model["spatial"].parameters()), spatial_rate=0.2)
    found = {(group["factor"], group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {(1.0, 0.01), (0.2, 0.0)}
