"""The shipped workflow samples as the trainer's previews do."""

import json

import pytest
from stillmotion.trainer.run.sample import ddim
from stillmotion.trainer.run.workflow import TEMPLATE


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_the_workflows_scheduler_visits_the_timesteps_of_the_previews(comfyui, steps):
    import comfy.model_sampling
    import comfy.samplers

    (sampler,) = [n for n in json.loads(TEMPLATE.read_text(encoding="utf-8"))["nodes"] if n["type"] == "KSampler"]
    *_, name, scheduler, _ = sampler["widgets_values"]
    assert name == "ddim"
    sampling, previews = comfy.model_sampling.ModelSamplingDiscrete(), ddim()
    previews.set_timesteps(steps)
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    assert sigmas[-1] == 0
    assert sampling.timestep(sigmas[:-1]).tolist() == previews.timesteps.tolist()
