"""HiGen's parts in the whole network: neutral at the start, each clip for itself, at every frame rate."""

import tiny_run as tiny
import torch
from stillmotion.networks.asked import Asked, Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import Appearance, InflationConfig, Motion, Prior, Resampling, Temporal
from stillmotion.networks.guidance import for_each_frame
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.run.export import fresh_inflation

PARTS = {"prior": Prior(), "motion": Motion(), "appearance": Appearance(4)}
HIGEN = InflationConfig(Temporal(levels=(("convolution", "transformer"),), middle=True), **PARTS)
FRAMES, CLIPS = 4, 2


def network_of(config=HIGEN, random=True):
    unet = tiny.tiny_unet()
    inflation = fresh_inflation(config, structure_of(unet), 0)
    for parameter in inflation.parameters() if random else ():
        torch.nn.init.normal_(parameter, std=0.1)
    return InflatedUNet(unet, inflation)


def given(frames=FRAMES):
    torch.manual_seed(3)
    rows = CLIPS * frames
    return torch.randn(rows, 4, 8, 8), torch.full((rows,), 500), torch.randn(rows, 77, 16), Clip.of(frames)


def asked(frames=FRAMES):
    torch.manual_seed(4)
    return Asked(
        prior=Given(torch.randn(CLIPS, 4, 8, 8)),
        motion=Given(900 * torch.rand(CLIPS, frames - 1)),
        similarity=Given(torch.rand(CLIPS, frames, frames)),
    )


@torch.no_grad()
def test_a_new_one_is_the_image_model_at_every_frame_whatever_is_asked():
    sample, times, text, clip = given()
    network = network_of(random=False)
    image = tiny.tiny_unet()(sample, times, text).sample
    torch.testing.assert_close(network(sample, times, text, clip, None, asked()), image, rtol=0, atol=1e-5)


def test_what_learns_from_the_first_step_is_the_last_layer_of_each_branch():
    network = network_of(random=False)
    network(*given(), None, asked()).square().mean().backward()
    moving = {name for name, p in network.inflation.named_parameters() if p.grad is not None and p.grad.any()}
    for name, parameter in network.inflation.named_parameters():
        last = any(end in name for end in ("convolutions.3.", "proj_out.", ".prior.", ".last."))
        assert (name in moving) == last and (parameter.any().item() != last or "norm" in name or "bias" in name)


@torch.no_grad()
def test_a_clip_does_not_see_what_the_other_is_asked_for():
    network, before = network_of(), asked()
    after = Asked(*(Given(one.value.clone()) for one in (before.prior, before.motion, before.similarity)))
    for one in (after.prior, after.motion, after.similarity):
        one.value[1] += 1
    one, other = (network(*given(), None, a).unflatten(0, (CLIPS, FRAMES)) for a in (before, after))
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


@torch.no_grad()
def test_where_frames_are_halved_each_that_stays_keeps_its_own_guidance():
    """Guidance is of frames: at half the rate ResBlocks see the embeddings of frames 0, 2, 4, …."""
    config = InflationConfig(resampling=Resampling((0,)), motion=Motion())
    network, seen = network_of(config), []
    block = network.unet.get_submodule("mid_block.resnets.0")
    block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    sample, times, text, clip = given(6)
    motion = 900 * torch.rand(CLIPS, 5)
    network(sample, times, text, clip, None, Asked(motion=Given(motion)))
    plain = network.unet.time_embedding(network.unet.get_time_embed(sample=sample, timestep=times))
    module = network.inflation.at("time", "motion")
    rows = module(Given(motion), 6, range(6), plain)
    expected = plain.unflatten(0, (CLIPS, 6)) + rows
    torch.testing.assert_close(seen[0], expected[:, ::2].flatten(0, 1), rtol=0, atol=1e-6)
    assert rows.shape == for_each_frame(torch.zeros(CLIPS, 5, rows.shape[-1]), 6).shape
