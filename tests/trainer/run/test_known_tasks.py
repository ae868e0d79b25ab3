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
from stillmotion.networks.config import Appearance, Condition, CrossFrames, InflationConfig, Motion, Prior
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


def network():
    unet = tiny.tiny_unet()
    return InflatedUNet(unet, fresh_inflation(CONFIG, structure_of(unet), 0))


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_a_new_stem_is_the_model_without_it_in_every_task(task):
    net, latents = network(), torch.randn(FRAMES, 4, 8, 8)
    known = told(task, latents, torch.Generator().manual_seed(1), Grey()).condition
    assert task == "text_to_video" or known.any()
    rows = torch.randn(FRAMES, 4, 8, 8), torch.full((FRAMES,), 500), torch.randn(FRAMES, 77, 16), Clip.of(FRAMES)
    asked = Asked(condition=Given(known[None]))
    assert torch.equal(net(*rows, None, asked), net(*rows))


def copy_everything(batch):
    """M = 1 and C = z everywhere."""
    return replace(batch, condition=torch.cat([batch.latents, torch.ones_like(batch.latents[:, :1])], 1))


def unknown(batch):
    return replace(batch, condition=torch.zeros(len(batch.latents), 5, *batch.latents.shape[2:]))


def trained_on(known, steps=120):
    """The loss of the first and the last steps of a training with a condition, on clips it has not seen before."""
    AcceleratorState._reset_state(True)
    torch.manual_seed(0)
    plan = tiny.tiny_plan(crop="center", cells=(6, 7), clips_per_step=4)
    objective = Objective(network(), plan)
    training = start_training(Accelerator(cpu=True), objective, Schedule(steps, 1e-2, warm_up=5), batch_size=4)
    clips, no_caption = tiny.tiny_clips(count=40)
    source = partial(batch_for, plan, clips, no_caption, 4)
    losses = [update(training, lambda s, n: known(source(s, n)), step).loss for step in range(1, steps + 1)]
    return sum(losses[:5]) / 5, sum(losses[-20:]) / 20


def test_a_clip_that_is_known_everywhere_is_learnt_to_be_copied():
    """With x_t and C = z the noise can be told exactly; without C it cannot, as clips are noise themselves."""
    first, last = trained_on(copy_everything)
    _, without = trained_on(unknown)
    assert last < 0.5 * first and last < 0.6 * without


def test_prior_and_guidance_go_on_as_their_file_says():
    assert decoupling_for(CONFIG) is None
    made = decoupling_for(InflationConfig(prior=Prior(), motion=Motion("l2sq_mean_x_7168")))
    assert made.measure.keywords == {"norm": "l2sq"}
    with pytest.raises(ValueError, match="measured on dinov2"):
        decoupling_for(InflationConfig(appearance=Appearance(4, "dinov2")))
