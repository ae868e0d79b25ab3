"""Beside other packs: what they replace in the host goes on acting, and what does not combine is said in a sentence.

Small stand-ins do what those packs do.
"""

from types import SimpleNamespace

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file

FRAMES = 4


@pytest.fixture
def attached(tmp_path):
    """Attaches a motion file of random weights to a MODEL."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    def attached(model, strength=1.0, **options):
        config, structure = InflationConfig(Temporal()), structure_of(model)
        inflation = Inflation(config, structure)
        for parameter in inflation.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path / "motion.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=FRAMES))
        strengths = {"temporal": strength, "recurrence": strength, "queries": strength}
        return attach(model, load_motion(path), **strengths, **options)

    return attached


def sample(model, frames=FRAMES):
    import comfy.sample

    noise = torch.randn(frames, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    text = [[torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(seed)), {}] for seed in (1, 2)]
    given = (text[:1], text[1:], torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, 1, 3.0, "euler", "normal", *given, disable_pbar=True, seed=0)


def test_a_function_that_a_pack_replaces_in_the_host_acts_on_the_blocks_that_it_has_marked(
    small_model, attached, monkeypatch
):
    """Reference AdaIN: the host's function is replaced on its module, and looks at what was put on a block."""
    from comfy.ldm.modules.diffusionmodules import openaimodel

    model = small_model()
    video, plain, own = attached(model, strength=0.0), sample(model), openaimodel.forward_timestep_embed

    def replaced(block, x, *args, **kwargs):
        x = own(block, x, *args, **kwargs)
        return x + block.shift if hasattr(block, "shift") else x

    monkeypatch.setattr(openaimodel, "forward_timestep_embed", replaced)
    unet = model.model.diffusion_model
    for block in (unet.input_blocks[1], unet.middle_block, unet.output_blocks[0]):
        monkeypatch.setattr(block, "shift", 0.5, raising=False)
    theirs = sample(model)
    assert (theirs - plain).abs().max() > 0.01
    assert torch.equal(sample(video), theirs)
    assert (sample(attached(model)) - theirs).abs().max() > 0.01


def test_clips_in_a_batch_are_not_sampled_on_the_windows_of_others(small_model, attached):
    """Core's windows, and those of packs that name their frames in ad_params."""
    from comfy import context_windows as core

    video = attached(small_model(), frames_per_clip=FRAMES)
    windowed = video.clone()
    windowed.model_options["context_handler"] = core.IndexListContextHandler(
        core.get_matching_context_schedule("standard_static"),
        core.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=2,
    )
    sentence = "Context windows work on one clip at a time; here are 8 frames in clips of 4"
    with pytest.raises(ValueError, match=sentence):
        sample(windowed, 2 * FRAMES)

    def in_a_window(executor, model, *args, **kwargs):
        options = kwargs.get("model_options") or args[-1]
        told = {"full_length": 16, "context_length": 8, "sub_idxs": list(range(8))}
        options["transformer_options"]["ad_params"] = told
        return executor(model, *args, **kwargs)

    video.add_wrapper("calc_cond_batch", in_a_window)
    with pytest.raises(ValueError, match="here are 16 frames in clips of 4"):
        sample(video, 2 * FRAMES)


def evolved(model, context_length):
    """A MODEL with what AnimateDiff-Evolved's Use Evolved Sampling leaves on it, context options and no motion."""
    model = model.clone()
    options = SimpleNamespace(context_length=context_length)
    model.set_attachments("ADE_params", SimpleNamespace(context_options=options))
    return model


def test_temporal_windows_and_animatediff_evolved_on_one_model_are_refused(small_model, attached, pack):
    from stillmotion.nodes.windowing import sampled_on_windows

    model = small_model()
    loaded = model.clone()
    loaded.set_additional_models("ADE", [attached(model).get_additional_models_with_key("stillmotion")[0].clone()])
    for other in (evolved(attached(model), 8), loaded):
        with pytest.raises(ValueError, match="AnimateDiff-Evolved runs this model and does not see Temporal Windows"):
            sample(sampled_on_windows(other, 4, 2, "flat"), 2 * FRAMES)


@pytest.mark.parametrize("context_length, warned", [(FRAMES, False), (None, True)])
def test_a_long_clip_in_the_windows_of_another_pack_is_not_warned_of(
    small_model, attached, caplog, context_length, warned
):
    sample(evolved(attached(small_model()), context_length), 3 * FRAMES)
    assert ("here it sees 12 at once" in caplog.text) == warned
