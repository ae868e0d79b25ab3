"""Shares of the schedule and strengths of edits, against ComfyUI's and diffusers' own code."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Prior
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionFileError, MotionInfo, write_motion_file
from stillmotion.networks.sites import Level, Structure
from stillmotion.samplers.schedules import alphas_cumprod, comfyui_edit, diffusers_edit, sigma_at, sigmas_of
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


ZERO_SNR = MotionInfo(
    InflationConfig(prior=Prior("zero")),
    Structure((Level(32, (1,), (1, 1)), Level(64, (1,), (1, 1))), middle=1, context=1024),
    prediction="v_prediction",
    zero_snr=True,
)


def motion_of(tmp_path, **info):
    """A motion file in memory, of a small SD2.x U-Net."""
    from stillmotion.nodes.motion import load_motion

    info, path = replace(ZERO_SNR, **info), tmp_path / "motion.safetensors"
    write_motion_file(path, Inflation(info.config, info.structure).state_dict(), info)
    return load_motion(path)


def set_by_core(model, sampling, zsnr):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


def test_a_file_brings_its_prediction_and_zero_terminal_snr_as_cores_node_sets_them(small_model, tmp_path):
    """The host takes small models of SD2.x, and some large ones, to predict epsilon."""
    from stillmotion.nodes.schedule import set_schedule

    model = small_model("sd21")
    core = set_by_core(model, "v_prediction", True).get_model_object("model_sampling")
    ours = set_schedule(model, motion_of(tmp_path), from_file=True).get_model_object("model_sampling")
    assert torch.equal(ours.sigmas, core.sigmas) and ours.sigma_max.item() == pytest.approx(4518.7, abs=1)
    sigma, x = torch.tensor([700.0]), torch.randn(1, 4, 2, 2)
    assert torch.equal(ours.calculate_denoised(sigma, x, 2 * x), core.calculate_denoised(sigma, x, 2 * x))
    assert torch.equal(ours.timestep(ours.sigmas), torch.arange(1000))


def test_zero_terminal_snr_is_the_same_in_both_hosts_but_where_the_signal_ends(comfyui):
    import comfy.model_sampling

    host = comfy.model_sampling.ModelSamplingDiscrete(zsnr=True).sigmas
    ours = sigmas_of(alphas_cumprod("scaled_linear", zero_snr=True))
    torch.testing.assert_close(ours[:-1], host[:-1], rtol=2e-4, atol=0)
    assert ours[-1].isinf() and host[-1] == pytest.approx(4518.7, abs=1)


def test_the_releases_50_steps_of_ddim_begin_below_the_cap(comfyui):
    """t = 981, 961, …, 1, so that the host's other last noise level is never met."""
    import comfy.model_sampling

    assert visited_by_comfyui(comfy.model_sampling.ModelSamplingDiscrete(zsnr=True), 50, 1.0) == list(
        range(981, 0, -20)
    )


def test_what_another_node_has_set_stays_where_it_predicts_the_same(small_model, tmp_path, caplog):
    from stillmotion.nodes.schedule import set_schedule

    motion, model = motion_of(tmp_path), small_model("sd21")
    same, other = set_by_core(model, "v_prediction", True), set_by_core(model, "v_prediction", False)
    assert set_schedule(same, motion, from_file=True) is same and not caplog.text
    assert set_schedule(other, motion, from_file=True) is other
    assert "another noise schedule (scaled_linear with zero terminal SNR, v_prediction)" in caplog.text


def test_a_model_that_predicts_something_else_is_refused_with_what_helps(small_model, tmp_path):
    from stillmotion.nodes.schedule import set_schedule

    motion, model = motion_of(tmp_path), small_model("sd21")
    with pytest.raises(MotionFileError, match="predicts eps: set schedule of the STUNet Loader to from file"):
        set_schedule(model, motion, from_file=False)
    with pytest.raises(MotionFileError, match="predicts eps: load the base"):
        set_schedule(set_by_core(model, "eps", True), motion, from_file=True)
    with pytest.raises(MotionFileError, match="predict epsilon; this one predicts v_prediction: load the base"):
        set_schedule(
            set_by_core(model, "v_prediction", True), motion_of(tmp_path, prediction="epsilon"), from_file=True
        )
