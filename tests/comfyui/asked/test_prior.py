"""Spatial Prior on a MODEL, through the host's own samplers."""

import pytest
import torch
from asked_clips import FRAMES, SCALE, condition, noise, sample, still, windowed, with_prior
from stillmotion.networks.config import CrossFrames, InflationConfig, Prior

PRIOR = InflationConfig(frame_attention=CrossFrames(), prior=Prior())
PLAIN = InflationConfig(frame_attention=CrossFrames())
ALONE = InflationConfig(prior=Prior())


def test_a_still_changes_every_frame_and_leaves_the_model_as_it_was(video):
    model = video(PRIOR)
    before = sample(model, noise())
    given = with_prior(model, still())
    assert ((sample(given, noise()) - before).abs().mean((1, 2, 3)) > 0.01).all()
    assert torch.equal(sample(model, noise()), before)


def test_the_network_gets_the_still_scaled_as_its_own_latents(video, monkeypatch):
    import stillmotion.nodes.attach as attach

    seen, asked_of = [], attach.asked_of
    monkeypatch.setattr(attach, "asked_of", lambda *args: seen.append(asked_of(*args)) or seen[-1])
    sample(with_prior(video(PRIOR), still()), noise())
    assert seen and all(a.frames == FRAMES and a.motion is a.similarity is None for a in seen)
    torch.testing.assert_close(seen[0].prior.value, (still() * SCALE).expand(2, -1, -1, -1))


def test_strength_is_a_factor_of_what_the_stem_adds_and_nought_is_the_model_itself(video):
    model = video(ALONE)
    assert with_prior(model, still(), strength=0.0) is model

    def stem(strength):
        out = []
        given = with_prior(model, still(), strength=strength) if strength else model.clone()
        given.set_model_input_block_patch(keep(out))
        sample(given, noise(), steps=1)
        return out[0]

    def keep(out):
        def patch(h, options):
            if options["block"] == ("input", 0):
                out.append(h.clone())
            return h

        return patch

    half, whole, twice, none = (stem(s) for s in (0.5, 1.0, 2.0, 0.0))
    assert (whole - none).abs().max() > 0.01
    for factor, got in ((0.5, half), (2.0, twice)):
        torch.testing.assert_close(got - none, factor * (whole - none), rtol=1e-4, atol=1e-4)


def test_the_middle_frame_is_taken_unless_another_is_named(video):
    model, latents = video(PRIOR), still(frames=4)
    middle = sample(with_prior(model, latents), noise())
    assert torch.equal(middle, sample(with_prior(model, latents[2:3]), noise()))
    assert torch.equal(middle, sample(with_prior(model, latents, frame=2), noise()))
    first = sample(with_prior(model, latents, frame=0), noise())
    assert torch.equal(first, sample(with_prior(model, latents[:1]), noise()))
    assert not torch.equal(first, middle)


def test_one_still_is_for_all_clips_of_a_batch(video):
    both = torch.cat([noise(seed=0), noise(seed=1)])
    batch = sample(with_prior(video(PRIOR, frames_per_clip=FRAMES), still()), both)
    runs = torch.cat([sample(with_prior(video(PRIOR), still()), clip) for clip in both.split(FRAMES)])
    torch.testing.assert_close(batch, runs, rtol=1e-5, atol=1e-4)


def test_cond_and_uncond_apart_equal_both_together(video):
    given = with_prior(video(PRIOR), still())
    together = sample(given, noise())
    mask = torch.ones(1, 8 * 8, 6 * 8)
    apart = sample(given, noise(), condition(1, mask=mask, mask_strength=1.0))
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-4)
    assert torch.isfinite(sample(given, noise(), condition(1, tokens=14))).all()


def test_an_area_of_the_prompt_sees_its_part_of_the_still(video):
    """Without anything over frames, what is left of the area does not depend on what the still has at its right."""
    given, other = still(), still()
    other[..., 4:] += 3
    left = condition(1, area=(8, 4, 0, 0), strength=1.0)
    model = video(ALONE)
    a, b = (sample(with_prior(model, s), noise(), left, left, steps=1)[..., :2] for s in (given, other))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    changed = sample(with_prior(model, given + 1), noise(), left, left, steps=1)[..., :2]
    assert (changed - a).abs().mean() > 0.01


@pytest.mark.parametrize("kind", ["core", "ours"])
def test_windows_of_frames_that_do_not_see_each_other_equal_the_whole(video, kind):
    given = with_prior(video(ALONE), still())
    whole = sample(given, noise(8))
    torch.testing.assert_close(sample(windowed(given, kind), noise(8)), whole, rtol=1e-5, atol=1e-4)


def test_files_without_a_stem_are_left_alone_in_any_order(video):
    def make(*configs):
        return sample(with_prior(video(*configs), still()), noise())

    assert (make(PRIOR, PLAIN) - sample(video(PRIOR, PLAIN), noise())).abs().max() > 0.01
    assert torch.isfinite(make(PLAIN, PRIOR)).all()


def test_a_still_of_another_size_is_refused_with_both_sizes_before_any_step(video):
    given, steps = with_prior(video(PRIOR), still(height=16, width=12)), []
    given.set_model_sampler_post_cfg_function(lambda args: steps.append(1) or args["denoised"])
    with pytest.raises(ValueError, match="has 96 x 128 pixels and the clip 48 x 64: .* 'resize the still'"):
        sample(given, noise())
    assert not steps


@pytest.mark.parametrize("height, width, cut", [(16, 12, slice(None)), (16, 16, slice(2, 14))])
def test_a_still_is_cut_to_the_clips_shape_and_resized_where_asked(video, height, width, cut):
    latents, model = still(height=height, width=width), video(PRIOR)
    given = with_prior(model, latents, size="resize the still")
    smaller = torch.nn.functional.avg_pool2d(latents[..., cut], 2)
    expected = sample(with_prior(model, smaller), noise())
    torch.testing.assert_close(sample(given, noise()), expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_motion_file_is_refused(small_model):
    with pytest.raises(ValueError, match="no motion file: put the STUNet Loader before Spatial Prior"):
        with_prior(small_model(), still())


def test_a_file_without_a_stem_is_refused_by_what_it_has(video):
    with pytest.raises(ValueError, match="part 'prior', and motion0.safetensors has frame_attention"):
        with_prior(video(PLAIN), still())


@pytest.mark.parametrize("latents", [torch.zeros(1, 16, 8, 6), torch.zeros(1, 4, 3, 8, 6)])
def test_latents_of_other_models_are_refused(video, latents):
    with pytest.raises(ValueError, match=rf"\({', '.join(map(str, latents.shape))}\); it takes those of Stable"):
        with_prior(video(PRIOR), latents)


def test_a_frame_that_is_not_there_is_refused(video):
    with pytest.raises(ValueError, match="frame 4 of 4; give 0 to 3, or -1"):
        with_prior(video(PRIOR), still(frames=4), frame=4)


def test_a_run_that_breaks_off_leaves_the_next_one_equal(video):
    given, positive = with_prior(video(PRIOR), still()), condition(1)
    whole = sample(given, noise(), positive)

    def cancel(*args):
        raise KeyboardInterrupt

    broken = given.clone()
    broken.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(KeyboardInterrupt):
        sample(broken, noise(), positive)
    assert list(positive[0][1]) == []
    assert torch.equal(sample(given, noise(), positive), whole)


def test_the_still_runs_in_half_precision(video, small_model):
    base = small_model(dtype=torch.bfloat16)
    assert torch.isfinite(sample(with_prior(video(PRIOR, model=base), still(), strength=0.5), noise())).all()


def test_a_file_of_the_release_gets_zeros_where_nothing_is_given(video):
    """Its stem has a bias, which acts without a still; half a still is half of the way from zeros to it."""
    model = video(InflationConfig(prior=Prior("zero")))
    zeros = sample(with_prior(model, torch.zeros(1, 4, 8, 6)), noise())
    assert torch.equal(sample(model, noise()), zeros)
    half = sample(with_prior(model, still(), strength=0.5), noise())
    torch.testing.assert_close(half, sample(with_prior(model, still() / 2), noise()), rtol=1e-4, atol=1e-4)
    assert (half - zeros).abs().max() > 0.01
