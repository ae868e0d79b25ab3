"""What a timestep counts in the loss, and what is predicted."""

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from stillmotion.samplers.schedules import NoiseSchedule, alphas_cumprod
from stillmotion.trainer.clips.batches import rows
from stillmotion.trainer.losses.denoising import noisy_rows, simple_loss, target_of, velocity_weight
from stillmotion.trainer.options import InflateOptions
from tiny_run import tiny_plan


def test_the_velocity_weight_makes_the_error_of_the_noise_that_of_v_up_to_its_limit():
    """v = √ᾱ ε - √(1-ᾱ) z, so that with z = (x - √(1-ᾱ) ε) / √ᾱ an error of ε is one of v times √ᾱ."""
    signal, noise, wrong = alphas_cumprod().double(), torch.randn(4).double(), torch.randn(4).double()
    for t in (0, 100, 400, 700):
        a = signal[t]
        x = a.sqrt() * torch.randn(4).double() + (1 - a).sqrt() * noise
        v, v_wrong = (a.sqrt() * e - (1 - a).sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() for e in (noise, wrong))
        weight = velocity_weight(signal[t]).double()
        torch.testing.assert_close(weight * (noise - wrong).square(), (v - v_wrong).square(), rtol=1e-5, atol=0)


def test_the_noisiest_steps_count_twenty_times_and_no_more():
    weights = velocity_weight(alphas_cumprod())
    assert weights.max() == 20 and (weights == 20).sum() == (alphas_cumprod() <= 1 / 20).sum() > 100
    assert weights[0] < 1.001 and (weights.diff() >= 0).all()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_velocity_and_noisy_rows_are_diffusers(zero_snr):
    """By diffusers' own scheduler, where there is noise alone too."""
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=zero_snr
    )
    plan = tiny_plan(prediction="v_prediction", zero_snr=zero_snr)
    for t in (0, 500, 999):
        batch = rows(torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.tensor(t), torch.zeros(5, 16))
        given = batch.latents, batch.noise, batch.timesteps
        torch.testing.assert_close(target_of(batch, plan), theirs.get_velocity(*given), rtol=0, atol=2e-4)
        torch.testing.assert_close(noisy_rows(batch, plan), theirs.add_noise(*given), rtol=0, atol=2e-4)
    if zero_snr:
        assert torch.equal(noisy_rows(batch, plan), batch.noise)
        assert torch.equal(target_of(batch, plan), -batch.latents)


def test_the_velocity_has_the_weighting_velocity_as_it_is():
    plan = tiny_plan(prediction="v_prediction", weighting="velocity")
    batch = rows(torch.randn(3, 4, 6, 5), torch.randn(3, 4, 6, 5), torch.tensor(900), torch.zeros(5, 16))
    assert simple_loss(target_of(batch, plan) + 2, batch, plan).item() == pytest.approx(4, rel=1e-5)


def test_the_schedules_that_an_option_offers_are_those_there_are():
    """Spelled out there, because options are read before torch is loaded."""
    assert get_args(InflateOptions.model_fields["schedule"].annotation) == get_args(NoiseSchedule)
