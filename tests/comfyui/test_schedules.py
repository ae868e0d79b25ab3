"""Shares of the schedule and strengths of edits, against ComfyUI's and diffusers' own code."""

from types import SimpleNamespace

import pytest
from stillmotion.samplers.schedules import comfyui_edit, diffusers_edit, sigma_at, sigmas_of
from stillmotion.trainer.run.sample import ddim


@pytest.fixture
def sampling(comfyui):
    import comfy.model_sampling

    return comfy.model_sampling.ModelSamplingDiscrete()


@pytest.mark.parametrize("percent", [0.01, 0.3, 0.5, 0.77, 0.999])
def test_a_share_of_the_schedule_is_the_same_noise_level_in_both_hosts(sampling, percent):
    ours = sigma_at(percent, sigmas_of(ddim().alphas_cumprod))
    assert ours == pytest.approx(sampling.percent_to_sigma(percent), rel=1e-4)


def visited_by_comfyui(sampling, steps, denoise):
    """Timesteps of KSampler's plan."""
    import comfy.samplers

    model = SimpleNamespace(get_model_object=lambda name: sampling)
    plan = comfy.samplers.KSampler(model, steps, "cpu", "ddim", "ddim_uniform", denoise)
    return sampling.timestep(plan.sigmas[:-1]).tolist()


def visited_by_diffusers(steps, strength):
    """Timesteps of the image-to-image pipeline."""
    from diffusers import StableDiffusionImg2ImgPipeline

    scheduler = ddim()
    scheduler.set_timesteps(steps)
    get_timesteps = StableDiffusionImg2ImgPipeline.get_timesteps
    return get_timesteps(SimpleNamespace(scheduler=scheduler), steps, strength, "cpu")[0].tolist()


EDITS = [(25, 0.6), (25, 0.5), (50, 0.4), (10, 0.75), (40, 0.1), (20, 0.999)]


@pytest.mark.parametrize(("steps", "strength"), EDITS)
def test_an_edit_of_diffusers_visits_the_same_timesteps_in_comfyui(sampling, steps, strength):
    theirs = visited_by_diffusers(steps, strength)
    assert len(theirs) == int(steps * strength)
    assert visited_by_comfyui(sampling, *comfyui_edit(steps, strength)) == theirs


@pytest.mark.parametrize(("steps", "denoise"), EDITS)
def test_an_edit_of_comfyui_visits_the_same_timesteps_in_diffusers(sampling, steps, denoise):
    theirs = visited_by_comfyui(sampling, steps, denoise)
    assert len(theirs) == steps
    assert visited_by_diffusers(*diffusers_edit(steps, denoise)) == theirs


def test_all_of_it_and_nothing_of_it(sampling):
    assert visited_by_comfyui(sampling, *comfyui_edit(25, 1.0)) == visited_by_diffusers(25, 1.0)
    assert visited_by_comfyui(sampling, *comfyui_edit(25, 0.0)) == visited_by_diffusers(25, 0.0) == []
