"""Motion/Appearance Guidance on a MODEL, through the host's own samplers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from asked_clips import FRAMES, SCALE, condition, noise, sample, still, windowed, with_prior
from stillmotion.networks.config import Appearance, CrossFrames, InflationConfig, Motion, Prior
from stillmotion.networks.guidance import similarity_of
from stillmotion.samplers.factors import appearance_factor, appearance_similarity, latent_features, motion_factors

MOTION, LOOK = Motion(), Appearance(FRAMES)
BOTH = InflationConfig(frame_attention=CrossFrames(), motion=MOTION, appearance=LOOK)
DIALS = InflationConfig(motion=MOTION, appearance=LOOK)
"""Nothing over frames: a frame depends on what is asked of it alone."""


@pytest.fixture
def guided(comfyui, tmp_path, monkeypatch):
    """Asks a MODEL; gives the MODEL, the plot and the numbers."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    from stillmotion.nodes.guidance import MotionAppearanceGuidance

    def run(model, motion=500.0, look=1.0, asks="motion and appearance", motion_cfg=False, **optional):
        output = MotionAppearanceGuidance.execute(model, motion, look, asks, motion_cfg, **optional)
        return SimpleNamespace(**dict(zip(("model", "plot", "numbers"), output.result)), ui=output.ui)

    return run


@pytest.fixture
def asked(monkeypatch):
    """What the motion files were asked for, in every forward."""
    import stillmotion.nodes.attach as attach

    seen, asked_of = [], attach.asked_of
    monkeypatch.setattr(attach, "asked_of", lambda *args: seen.append(asked_of(*args)) or seen[-1])
    return seen


def reference(frames=5, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 4, 8, 6, generator=generator).cumsum(0) / SCALE


def far(a, b):
    return (a - b).abs().max() > 0.01


def test_each_dial_changes_the_clip_and_leaves_the_model_as_it_was(video, guided):
    model = video(BOTH)
    free = sample(model, noise())
    base = sample(guided(model, 500.0, 0.5).model, noise())
    assert far(base, free)
    assert far(sample(guided(model, 100.0, 0.5).model, noise()), base)
    assert far(sample(guided(model, 500.0, 0.1).model, noise()), base)
    assert torch.equal(sample(model, noise()), free)


def test_the_network_gets_the_numbers_of_the_whole_clip(video, guided, asked):
    sample(guided(video(BOTH), 432.0, 0.6).model, noise())
    assert asked and all(a.frames == FRAMES and a.prior is None for a in asked)
    assert asked[0].motion.value.tolist() == [[432.0] * FRAMES] and asked[0].motion.weight is None
    expected = similarity_of(0.6 * torch.linspace(0, 1, FRAMES))
    torch.testing.assert_close(asked[0].similarity.value, expected[None])


def test_keyframes_come_before_the_numbers(video, guided, asked):
    curves = {"motion_keyframes": "0: 100, 3: 400", "appearance_keyframes": "1: 0, 3: 1"}
    told = guided(video(BOTH), **curves)
    sample(told.model, noise())
    assert asked[0].motion.value.tolist() == [[100, 200, 300, 400]]
    torch.testing.assert_close(asked[0].similarity.value[0], similarity_of(torch.tensor([0, 0, 0.5, 1])))
    assert "motion: 100 200 300 400" in told.numbers and "appearance: 0 0 0.5 1" in told.numbers


@pytest.mark.parametrize("asks, motion, look", [("motion", True, False), ("appearance", False, True)])
def test_a_dial_that_is_not_asked_stays_as_it_was(video, guided, asked, asks, motion, look):
    sample(guided(video(BOTH), asks=asks).model, noise(), steps=1)
    assert (asked[-1].motion is not None, asked[-1].similarity is not None) == (motion, look)
    other = "appearance" if motion else "motion"
    chained = guided(guided(video(BOTH), 100.0, 0.2, asks=asks).model, 300.0, 0.7, asks=other).model
    sample(chained, noise(), steps=1)
    assert asked[-1].motion.value[0, 0] == (100 if motion else 300)
    assert 1 - asked[-1].similarity.value[0, 0, -1].item() == pytest.approx(0.2 if look else 0.7)


@pytest.mark.parametrize("norm", ["l1", "l2sq"])
def test_a_reference_is_measured_as_the_clips_were_that_the_file_was_trained_on(video, guided, asked, norm):
    raw, config = reference(FRAMES), InflationConfig(motion=Motion(f"{norm}_mean_x_7168"))
    sample(guided(video(config), asks="motion", reference_latent={"samples": raw}).model, noise(), steps=1)
    torch.testing.assert_close(asked[-1].motion.value[0].cpu(), motion_factors(SCALE * raw, norm))


@pytest.mark.parametrize("frames", [4, 5, 9])
def test_a_reference_is_measured_and_fitted_to_the_clip(video, guided, asked, frames):
    raw = reference()
    told = guided(video(BOTH), reference_latent={"samples": raw}, motion_scale=0.5, appearance_scale=0.25)
    sample(told.model, noise(frames), steps=1)
    factors = motion_factors(raw * SCALE) * 0.5
    got = asked[0].motion.value[0]
    assert len(got) == frames - 1
    torch.testing.assert_close(got[[0, -1]], factors[[0, -1]])
    similarity = appearance_similarity(latent_features(raw * SCALE))
    torch.testing.assert_close(
        appearance_factor(asked[0].similarity.value[0]), 0.25 * appearance_factor(similarity), rtol=1e-4, atol=1e-5
    )


def test_images_are_encoded_once_and_clip_vision_sees_them(video, guided, asked, caplog):
    images, calls = torch.rand(20, 64, 48, 4), []

    def encode(pixels):
        calls.append(pixels.shape)
        return reference(len(pixels))

    vae = SimpleNamespace(encode=encode)
    guided(video(BOTH), reference=images, vae=vae)
    assert calls == [(20, 64, 48, 3)] and not caplog.text

    def encode_image(pixels, crop):
        assert not crop
        calls.append(pixels.shape)
        return {"image_embeds": pixels.mean((1, 2)).to(torch.float16)}

    class Dinov2Model:
        pass

    vision = SimpleNamespace(encode_image=encode_image, model=Dinov2Model())
    calls.clear()
    sample(guided(video(BOTH), asks="appearance", reference=images, clip_vision=vision).model, noise(20), steps=1)
    assert calls == [(16, 64, 48, 3), (4, 64, 48, 3)]
    expected = appearance_similarity(images[..., :3].mean((1, 2)).half())
    torch.testing.assert_close(asked[-1].similarity.value[0], expected, rtol=0, atol=1e-2)
    assert "measured by dino features, motion0.safetensors was trained on those of latent" in caplog.text


@pytest.mark.parametrize(
    "measured, trained, other",
    [
        ("latent", "latent", False),
        ("latent", "dinov2-base", True),
        ("clip", "latent", True),
        ("clip", "facebook/dinov2-base", True),
        ("dino", "facebook/dinov2-base", False),
        ("clip", "openai/clip-vit-large-patch14", False),
        ("clip", "my-folder", False),
    ],
)
def test_features_that_are_not_the_files_are_known(comfyui, measured, trained, other):
    from stillmotion.nodes.features import are_other

    assert are_other(measured, trained) == other


def test_two_clips_in_one_batch_are_two_runs(video, guided):
    both = torch.cat([noise(seed=0), noise(seed=1)])
    curves = {"motion_keyframes": "0: 100, 3: 900", "appearance_keyframes": "0: 0, 3: 1"}
    batch = sample(guided(video(BOTH, frames_per_clip=FRAMES), **curves).model, both)
    runs = torch.cat([sample(guided(video(BOTH), **curves).model, clip) for clip in both.split(FRAMES)])
    torch.testing.assert_close(batch, runs, rtol=1e-5, atol=1e-4)


def test_motion_cfg_leaves_the_dials_out_of_the_negative_branch(video, guided):
    """With the same prompt in both branches CFG amplifies nothing but what is asked."""
    model, prompt = video(BOTH), condition(1)

    def first_step(model, cfg):
        return sample(model, noise(), prompt, prompt, cfg=cfg, steps=1)

    free, given = first_step(model, 1.0), first_step(guided(model).model, 1.0)
    both_branches = first_step(guided(model).model, 3.0)
    torch.testing.assert_close(both_branches, given, rtol=1e-4, atol=1e-3)
    amplified = first_step(guided(model, motion_cfg=True).model, 3.0)
    torch.testing.assert_close(amplified, free + 3 * (given - free), rtol=1e-3, atol=2e-3)
    assert far(amplified, given)


def test_motion_cfg_is_the_same_where_branches_run_apart(video, guided):
    model = guided(video(BOTH), motion_cfg=True).model
    mask = torch.ones(1, 8 * 8, 6 * 8)
    apart = sample(model, noise(), condition(1, mask=mask, mask_strength=1.0))
    torch.testing.assert_close(apart, sample(model, noise()), rtol=1e-5, atol=1e-4)


def test_motion_cfg_of_two_clips_and_of_files_that_never_go_without(video, guided, asked):
    release = InflationConfig(motion=replace(MOTION, absent="zero"), appearance=replace(LOOK, absent="zero"))
    model = guided(video(release, frames_per_clip=FRAMES), motion_cfg=True).model
    assert torch.isfinite(sample(model, noise(2 * FRAMES), steps=1)).all()
    assert sorted(asked[0].motion.weight.tolist()) == sorted(asked[0].similarity.weight.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["core", "ours"])
def test_windows_take_their_own_frames_of_the_curve(video, guided, kind):
    """Frames that do not see each other are as in the whole clip."""
    config = InflationConfig(motion=MOTION)
    model = guided(video(config), motion_keyframes="0: 100, 7: 900", asks="motion").model
    whole = sample(model, noise(8))
    torch.testing.assert_close(sample(windowed(model, kind), noise(8)), whole, rtol=1e-5, atol=1e-4)
    constant = guided(video(config), 100.0, asks="motion").model
    assert far(sample(constant, noise(8))[4:], whole[4:])


@pytest.mark.parametrize("kind", ["core", "ours"])
def test_windows_ask_for_their_part_of_the_whole_clips_similarities(video, guided, asked, kind):
    model = windowed(guided(video(BOTH), 500.0, 0.7).model, kind)
    sample(model, noise(8), steps=1)
    assert {a.frames for a in asked} == {8} and asked[0].similarity.value.shape == (1, 8, 8)


def test_a_single_frame_is_the_image_model(video, guided):
    model = video(DIALS)
    assert torch.equal(sample(guided(model).model, noise(1)), sample(model, noise(1)))


def test_files_take_what_they_have_a_part_for(video, guided, asked):
    model = video(InflationConfig(motion=MOTION), InflationConfig(frame_attention=CrossFrames()))
    sample(guided(model, asks="motion").model, noise(), steps=1)
    given = [a.motion is not None for a in asked[:2]]
    assert given == [True, False]


def test_it_chains_with_a_still_in_any_order(video, guided):
    model = video(replace(BOTH, prior=Prior()))
    one = guided(with_prior(model, still())).model
    other = with_prior(guided(model).model, still())
    both = sample(one, noise())
    assert torch.equal(both, sample(other, noise()))
    assert far(both, sample(with_prior(model, still()), noise()))
    assert far(both, sample(guided(model).model, noise()))


def test_it_runs_under_mitigating_gradients_as_under_cfg(video, guided):
    """With alpha 0 the guider of the MG sampler is the host's own."""
    import comfy.samplers
    from stillmotion.nodes.guide import Guidance, MitigatingGuider

    model = guided(with_prior(video(replace(BOTH, prior=Prior())), still()), motion_cfg=True).model
    plain = Guidance(3.0, 3.0, 0.5, 0.0, 1.0, "symmetric", False, 0.0, 1.0)
    plan = comfy.samplers.KSampler(model, 2, model.load_device, "euler", "normal", 1.0)
    guider = MitigatingGuider(model, condition(1), condition(2), plain)
    settings = (torch.zeros_like(noise()), comfy.samplers.sampler_object("euler"), plan.sigmas)
    got = guider.sample(noise(), *settings, disable_pbar=True, seed=0)
    torch.testing.assert_close(got, sample(model, noise()), rtol=1e-5, atol=1e-4)
    moving = MitigatingGuider(model, condition(1), condition(2), replace(plain, alpha=40.0))
    assert far(moving.sample(noise(), *settings, disable_pbar=True, seed=0), got)


def test_a_file_without_a_dial_is_refused_by_what_it_has(video, small_model, guided):
    with pytest.raises(ValueError, match="no motion file: put the STUNet Loader before Motion/Appearance Guidance"):
        guided(small_model())
    message = "part 'appearance', and motion0.safetensors has motion: load .* or set asks to what it has"
    with pytest.raises(ValueError, match=message):
        guided(video(InflationConfig(motion=MOTION)))


@pytest.mark.parametrize(
    "optional, message",
    [
        ({"motion_keyframes": "0: 2001"}, "motion_keyframes has '2001'; write numbers from 0 to 2000"),
        ({"appearance_keyframes": "0: 1.5"}, "appearance_keyframes has '1.5'; write numbers from 0 to 1"),
        ({"reference": torch.rand(5, 64, 48, 3)}, "connect a VAE, or the clip as LATENT"),
        ({"reference_latent": {"samples": reference(1)}}, "a single frame, which has no motion"),
        (
            {"reference_latent": {"samples": reference()}, "clip_vision": object()},
            "connect the reference clip as IMAGE",
        ),
        (
            {"reference_latent": {"samples": reference()}, "reference": torch.rand(4, 64, 48, 3)},
            "The LATENT has 5 frames and the IMAGE 4",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(video, guided, optional, message):
    with pytest.raises(ValueError, match=message):
        guided(video(BOTH), **optional)


def test_a_run_that_breaks_off_leaves_the_next_one_equal(video, guided):
    model, positive = guided(video(BOTH), motion_cfg=True).model, condition(1)
    whole = sample(model, noise(), positive)

    def cancel(*args):
        raise KeyboardInterrupt

    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(KeyboardInterrupt):
        sample(broken, noise(), positive)
    assert torch.equal(sample(model, noise(), positive), whole)


def test_the_numbers_name_the_values_of_the_training_clips(video, guided):
    model = video(BOTH)
    (settings,) = model.get_attachment("stillmotion")
    info = replace(settings.motion.info, factors={"motion": [120.0, 310.0, 800.0], "appearance": [0.0, 0.2, 0.7]})
    settings.motion.info = info
    told = guided(model, 300.0, 0.5)
    assert "motion: 300 everywhere\ntraining clips: half below 310, nine of ten from 120 to 800" in told.numbers
    assert "appearance: 0 0.167 0.333 0.5\ntraining clips: half below 0.2, nine of ten from 0 to 0.7" in told.numbers
    assert told.plot.shape == (1, 640, 640, 3) and told.ui["text"][0] == told.numbers
    assert guided(model, asks="motion").plot.shape == (1, 320, 640, 3)


def test_the_dials_run_in_half_precision(video, guided, small_model):
    model = video(BOTH, model=small_model(dtype=torch.bfloat16))
    assert torch.isfinite(sample(guided(model, motion_cfg=True).model, noise())).all()
