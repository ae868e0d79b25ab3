"""Known pixels in a training: what a new stem leaves alone, what it learns, and how other parts go on beside it."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_run as tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from stillmotion.networks.asked import Asked, Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import Appearance, Condition, CrossFrames, InflationConfig, Motion, Prior, Temporal
from stillmotion.samplers.schedules import alphas_cumprod
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import batch_for
from stillmotion.trainer.clips.known import TASKS, told
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.known_tasks import decoupling_for
from stillmotion.trainer.run.loop import start_training, update
from stillmotion.trainer.run.optimiser import Schedule

FRAMES = 4
CONFIG = InflationConfig(frame_attention=CrossFrames(), condition=Condition())


class Grey:
    """An autoencoder that only has shapes: the stem at its start does not look."""

    def encode(self, frames):
        return torch.rand(len(frames), 4, frames.shape[1] // 8, frames.shape[2] // 8)

    def decode(self, latents):
        return torch.rand(len(latents), 8 * latents.shape[2], 8 * latents.shape[3], 3)


def network(config=CONFIG):
    unet = tiny.tiny_unet()
    return InflatedUNet(unet, fresh_inflation(config, structure_of(unet), 0))


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_a_new_stem_is_the_model_without_it_in_every_task(task):
    net, latents = network(), torch.randn(FRAMES, 4, 8, 8)
    known = told(task, latents, torch.Generator().manual_seed(1), Grey()).condition
    assert task == "text_to_video" or known.any()
    rows = torch.randn(FRAMES, 4, 8, 8), torch.full((FRAMES,), 500), torch.randn(FRAMES, 77, 16), Clip.of(FRAMES)
    asked = Asked(condition=Given(known[None]))
    assert torch.equal(net(*rows, None, asked), net(*rows))


TIMESTEP, STEPS = 300, 80


def copy_task(batch):
    """M = 1 and C = z everywhere, at one noise level."""
    condition = torch.cat([batch.latents, torch.ones_like(batch.latents[:, :1])], 1)
    return replace(batch, condition=condition, timesteps=torch.full_like(batch.timesteps, TIMESTEP))


def test_a_clip_that_is_known_everywhere_is_learnt_to_be_copied():
    """These clips are white noise of variance 1, so that without C no network gets below ᾱ, the variance of ε given
    x_t; what C brings is below that."""
    AcceleratorState._reset_state(True)
    plan, clips = tiny.tiny_plan(crop="center", cells=(6, 7)), tiny.tiny_clips(count=40)
    config = InflationConfig(Temporal(levels=(("attention", "factorised"),)), condition=Condition())
    objective = Objective(network(config), plan)
    training = start_training(Accelerator(cpu=True), objective, Schedule(STEPS, 1e-2, warm_up=5), batch_size=2)
    source = partial(batch_for, plan, *clips, 2)
    losses = [update(training, lambda s, n: copy_task(source(s, n)), step).loss for step in range(1, STEPS + 1)]
    bound = alphas_cumprod(plan.schedule)[TIMESTEP].item()
    assert losses[0] > 0.9 * bound and sum(losses[-10:]) / 10 < 0.75 * bound


def test_prior_and_guidance_go_on_as_their_file_says():
    assert decoupling_for(CONFIG) is None
    made = decoupling_for(InflationConfig(prior=Prior(), motion=Motion("l2sq_mean_x_7168")))
    assert made.measure.keywords == {"norm": "l2sq"}
    with pytest.raises(ValueError, match="measured on dinov2"):
        decoupling_for(InflationConfig(appearance=Appearance(4, "dinov2")))
