"""Places on noise schedules, against the schedules written out and against what two hosts do."""

import math
from itertools import product
from typing import get_args

import pytest
import torch
from stillmotion.samplers.schedules import (
    NoiseSchedule,
    alphas_cumprod,
    cfg_at,
    comfyui_edit,
    diffusers_edit,
    flow_to_sigma,
    is_within,
    sigma_at,
    sigmas_of,
)

BETAS = {
    "scaled_linear": [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999) ** 2 for t in range(1000)],
    "linear": [0.00085 + (0.012 - 0.00085) * t / 999 for t in range(1000)],
}


def schedule(name):
    return sigmas_of(torch.cumprod(1 - torch.tensor(BETAS[name], dtype=torch.float64), dim=0))


@pytest.mark.parametrize("name", get_args(NoiseSchedule))
def test_the_signal_that_is_left_is_the_product_of_what_each_step_leaves(name):
    left, product_of_all = 1.0, []
    for beta in BETAS[name]:
        left *= 1 - beta
        product_of_all.append(left)
    torch.testing.assert_close(alphas_cumprod(name).double(), torch.tensor(product_of_all).double(), rtol=2e-5, atol=0)
    assert alphas_cumprod(name).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "least", "switch", "most"),
    [("scaled_linear", 0.0292, 3.321, 14.615), ("linear", 0.0292, 5.204, 25.146)],
)
def test_noise_levels_of_the_two_schedules(name, least, switch, most):
    sigmas = schedule(name)
    places = (0, least, 4), (699, switch, 3), (999, most, 3)
    for timestep, expected, digits in places:
        assert round(sigmas[timestep].item(), digits) == expected


@pytest.mark.parametrize("name", BETAS)
def test_guidance_switches_after_the_first_three_tenths_of_the_timesteps(name):
    sigmas = schedule(name)
    switch = sigma_at(0.3, sigmas)
    scales = [cfg_at(sigma, 12.0, 7.5, switch) for sigma in sigmas.tolist()]
    assert scales == [7.5] * 700 + [12.0] * 300
    assert scales == [cfg_at(sigma, 12.0, 7.5, sigmas[699].item()) for sigma in sigmas.tolist()]


def test_percent_runs_from_before_the_noisy_end_to_after_the_clean_one():
    sigmas = schedule("linear")
    assert sigma_at(0.0, sigmas) == math.inf and sigma_at(1.0, sigmas) == 0
    assert sigma_at(499 / 999, sigmas) == pytest.approx(sigmas[500].item(), rel=1e-9)
    between = sigma_at(499.25 / 999, sigmas)  # a quarter of the way from timestep 500 to 499
    assert math.log(between) == pytest.approx(0.75 * math.log(sigmas[500]) + 0.25 * math.log(sigmas[499]))


def test_a_range_holds_both_its_ends():
    levels = [14.6, 3.0, 2.0, 1.0, 0.03, 0.0]
    assert [level for level in levels if is_within(level, 3.0, 1.0)] == [3.0, 2.0, 1.0]
    assert all(is_within(level, math.inf, 0.0) for level in levels)


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.999])
def test_a_flow_and_a_diffusion_of_the_same_sigma_are_the_same_sample_scaled(time):
    clean, noise = torch.randn(2, 100, dtype=torch.float64)
    flow = (1 - time) * clean + time * noise
    diffusion = clean + flow_to_sigma(time) * noise
    torch.testing.assert_close(flow / (1 - time), diffusion, rtol=1e-12, atol=1e-12)


def test_pure_noise_has_a_finite_sigma():
    assert 1e5 < flow_to_sigma(1.0) < math.inf
    assert flow_to_sigma(0.5, noise_scale=8.0) == 8


def run_by_diffusers(steps, strength):
    """Places of a schedule of so many steps that StableDiffusionImg2ImgPipeline visits."""
    return steps, list(range(steps))[max(steps - min(int(steps * strength), steps), 0) :]


def run_by_comfyui(steps, denoise):
    """The same of KSampler."""
    total = steps if denoise > 0.9999 else int(steps / denoise) if denoise > 0 else 0
    return total, list(range(total))[total - steps :] if total else []


GRID = list(product(range(1, 61), [n / 20 for n in range(1, 21)]))


def test_an_edit_of_diffusers_runs_the_same_steps_in_comfyui():
    for steps, strength in GRID:
        theirs, ours = run_by_diffusers(steps, strength), run_by_comfyui(*comfyui_edit(steps, strength))
        assert ours == theirs or ours[1] == theirs[1] == []


def test_an_edit_of_comfyui_runs_the_same_steps_in_diffusers():
    for steps, denoise in GRID:
        assert run_by_diffusers(*diffusers_edit(steps, denoise)) == run_by_comfyui(steps, denoise)


@pytest.mark.parametrize("convert", [comfyui_edit, diffusers_edit])
def test_edits_of_all_or_nothing(convert):
    assert convert(20, 1.0) == (20, 1.0)
    assert convert(20, 0.0) == (20, 0.0)
