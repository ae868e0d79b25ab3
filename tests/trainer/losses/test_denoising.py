"""What a timestep counts in the loss."""

from typing import get_args

import torch
from stillmotion.samplers.schedules import NoiseSchedule, alphas_cumprod
from stillmotion.trainer.losses.denoising import velocity_weight
from stillmotion.trainer.options import InflateOptions


def test_the_velocity_weight_makes_the_error_of_the_noise_that_of_v_up_to_its_limit():
    """v = √ᾱ ε - √(1-ᾱ) z, so that with z = (x - √(1-ᾱ) ε) / √ᾱ an error of ε is one of v times √ᾱ."""
    signal, noise, wrong = alphas_cumprod().double(), torch.randn(4).double(), torch.randn(4).double()
    for t in (0, 100, 400, 700):
        a = signal[t]
        x = a.sqrt() * torch.randn(4).double() + (1 - a).sqrt() * noise
        v, v_wrong = (a.sqrt() * e - (1 - a).sqrt() * (x - (1 - a).sqrt() * e) / a.sqrt() for e in (noise, wrong))
        weight = velocity_weight(torch.tensor([t])).double()
        torch.testing.assert_close(weight * (noise - wrong).square(), (v - v_wrong).square(), rtol=1e-5, atol=0)


def test_the_noisiest_steps_count_twenty_times_and_no_more():
    weights = velocity_weight(torch.arange(1000))
    assert weights.max() == 20 and (weights == 20).sum() == (alphas_cumprod() <= 1 / 20).sum() > 100
    assert weights[0] < 1.001 and (weights.diff() >= 0).all()


def test_the_schedules_that_an_option_offers_are_those_there_are():
    """Spelled out there, because options are read before torch is loaded."""
    assert get_args(InflateOptions.model_fields["schedule"].annotation) == get_args(NoiseSchedule)
