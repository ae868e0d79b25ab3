"""Patches of other nodes and packs with a row for each frame, where the frame rate is halved."""

import pytest
import torch
from space_time_clips import HALVED, assert_different, assert_same, attach, noise, sample

FRAMES = 5


def with_objects(model, rows):
    """GLIGEN as the host runs it: between two attentions, with objects for as many rows as the input has."""
    model, seen = model.clone(), []

    def patch(x, extra_options):
        seen.append(len(x))
        return x + rows[: len(x), None, None].to(x)

    model.model_options["transformer_options"] = {"patches": {"middle_patch": [patch]}}
    return model, seen


def test_gligens_objects_act_at_every_level(model, motion):
    video = attach(model, motion(HALVED))
    plain = sample(video, noise(FRAMES))
    alike = torch.ones(2 * FRAMES)  # both conditions in one batch
    everywhere, seen = with_objects(video, alike)
    got = sample(everywhere, noise(FRAMES))
    assert set(seen) == {2 * FRAMES}
    assert_different(got, plain)
    nothing, _ = with_objects(video, 0 * alike)
    assert_same(sample(nothing, noise(FRAMES)), plain)


def test_a_patch_with_a_row_for_each_frame_is_told_of_the_halved_rate(model, motion):
    for wrong in (lambda n: n + torch.ones(2 * FRAMES, 1, 1), lambda n: n[torch.arange(2 * FRAMES)]):
        patched = attach(model, motion(HALVED)).clone()
        patched.set_model_attn1_patch(lambda n, context, value, extra, wrong=wrong: (wrong(n), context, value))
        with pytest.raises(RuntimeError, match="where the motion file makes one frame of 2 .* keeps the frame rate"):
            sample(patched, noise(FRAMES))


def test_self_attention_guidance_is_refused_where_frames_are_merged(model, motion):
    """Elsewhere it is the host's own matter: latents as small as these fail in it."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance
    from stillmotion.nodes.attach import KEY, check_rates

    halved, idle = (attach(model, motion(HALVED), strength) for strength in (1.0, 0.0))
    guided = SelfAttentionGuidance.execute(halved, 0.5, 2.0).args[0]
    with pytest.raises(ValueError, match="use Perturbed-Attention Guidance, or a motion file that keeps"):
        sample(guided, noise(FRAMES))
    check_rates(guided.model_options, idle.get_attachment(KEY))
    check_rates(halved.model_options, halved.get_attachment(KEY))
