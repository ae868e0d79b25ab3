"""Motion files on a MODEL: through the host's own samplers, beside the things that other packs put on it."""

import os

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionFileError, MotionInfo, write_motion_file

ALL = InflationConfig(Temporal(), CrossFrames(), Recurrence(), Queries(4))
FRAMES = 4


@pytest.fixture
def motion(tmp_path):
    """Writes a motion file for a MODEL, as if trained, and returns its path."""
    from stillmotion.nodes.attach import structure_of

    def write(model, name="motion", config=ALL, std=0.1, **info):
        structure = structure_of(model)
        inflation = Inflation(config, structure)
        for parameter_name, parameter in inflation.named_parameters():
            torch.nn.init.normal_(parameter, mean=std * 5 * ("gamma" in parameter_name), std=std)
        path = tmp_path / f"{name}.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=FRAMES, **info))
        return path

    return write


def attach(model, path, strength=1.0, frames_per_clip=0):
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import load_motion

    strengths = {"temporal": strength, "recurrence": strength, "queries": strength}
    return attach(model, load_motion(path), **strengths, frames_per_clip=frames_per_clip)


def condition(seed, tokens=7, **options):
    text = torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, options]]


def sample(model, noise, positive=None, negative=None, cfg=3.0, steps=2):
    import comfy.sample

    positive, negative = positive or condition(1), negative or condition(2)
    latent = torch.zeros_like(noise)
    return comfy.sample.sample(
        model, noise, steps, cfg, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=0
    )


def noise(frames=FRAMES, seed=0):
    return torch.randn(frames, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def test_a_motion_file_changes_the_clip_and_leaves_the_model_as_it_was(small_model, motion):
    model = small_model()
    before = sample(model, noise())
    video = attach(model, motion(model))
    assert (sample(video, noise()) - before).abs().max() > 0.01
    assert torch.equal(sample(model, noise()), before)
    assert not model.wrappers.get("outer_sample")


def test_strength_zero_is_the_image_model(small_model, motion):
    model = small_model()
    video = attach(model, motion(model), strength=0.0)
    torch.testing.assert_close(sample(video, noise()), sample(model, noise()), rtol=0, atol=1e-6)


def test_two_clips_in_one_batch_are_two_runs(small_model, motion):
    model = small_model()
    path = motion(model)
    both = torch.cat([noise(seed=0), noise(seed=1)])
    batch = sample(attach(model, path, frames_per_clip=FRAMES), both)
    runs = torch.cat([sample(attach(model, path), clip) for clip in both.split(FRAMES)])
    torch.testing.assert_close(batch, runs, rtol=1e-5, atol=1e-4)
    assert (sample(attach(model, path), both) - batch).abs().max() > 0.01  # as one clip of twice the length


def test_cond_and_uncond_apart_equal_both_together(small_model, motion):
    model = small_model()
    video = attach(model, motion(model))
    together = sample(video, noise(), condition(1), condition(2))
    mask = torch.ones(1, 8 * 8, 6 * 8)  # a mask forces separate calls and otherwise changes nothing
    apart = sample(video, noise(), condition(1, mask=mask, mask_strength=1.0), condition(2))
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-4)


def test_cond_and_uncond_of_different_lengths(small_model, motion):
    model = small_model()
    video = attach(model, motion(model))
    assert torch.isfinite(sample(video, noise(), condition(1, tokens=7), condition(2, tokens=14))).all()


def test_the_order_of_chained_files_does_not_matter(small_model, motion):
    model = small_model()
    a, b = motion(model, "a"), motion(model, "b")
    ab, ba = attach(attach(model, a), b), attach(attach(model, b), a)
    torch.testing.assert_close(sample(ab, noise()), sample(ba, noise()), rtol=1e-5, atol=1e-4)
    assert (sample(ab, noise()) - sample(attach(model, a), noise())).abs().max() > 0.01


def test_files_on_one_base_do_not_leak_into_each_other(small_model, motion):
    model = small_model()
    a, b = attach(model, motion(model, "a")), attach(model, motion(model, "b"))
    first = sample(a, noise())
    sample(b, noise())
    assert torch.equal(sample(a, noise()), first)


KEY = "diffusion_model.output_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"


def test_a_lora_on_the_base_and_the_motion_both_act(small_model, motion):
    model = small_model()
    video = attach(model, motion(model))
    lora = {KEY: ("diff", (torch.randn(32, 32),))}
    styled, still = video.clone(), model.clone()
    assert styled.add_patches(lora, 1.0) == still.add_patches(lora, 1.0) == [KEY]
    both = sample(styled, noise())
    assert (both - sample(video, noise())).abs().max() > 0.01
    assert (both - sample(still, noise())).abs().max() > 0.01


@pytest.mark.parametrize(
    "patch",
    [
        lambda model: model.set_model_attn1_output_patch(lambda n, extra: n * 1.5),
        lambda model: model.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1),
        lambda model: model.set_model_attn1_replace(lambda q, k, v, extra: q, "input", 1),
    ],
)
def test_patches_of_other_packs_still_act(small_model, motion, patch):
    model = small_model()
    video = attach(model, motion(model))
    patched, still = video.clone(), model.clone()
    patch(patched), patch(still)
    both = sample(patched, noise())
    assert (both - sample(video, noise())).abs().max() > 0.01
    assert (both - sample(still, noise())).abs().max() > 0.01


def test_files_are_shared_and_read_anew_when_they_change(small_model, motion):
    from stillmotion.nodes.motion import load_motion

    model = small_model()
    path = motion(model)
    first = load_motion(path)
    assert load_motion(path) is first
    twice = attach(attach(model, path), path, strength=0.5)
    assert torch.isfinite(sample(twice, noise())).all()
    motion(model)
    assert load_motion(path) is not first


def test_a_file_that_was_changed_within_its_size_and_time_is_read_anew(small_model, motion, tmp_path):
    """As tools do that synchronise folders: by another file in its place, or by writing into it."""
    from stillmotion.networks.stamp import stamp_of
    from stillmotion.nodes.motion import load_motion

    path = tmp_path / "a.safetensors"
    for way in ("replaced", "written into"):
        path.write_bytes(motion(small_model()).read_bytes())
        first, before, stamp = load_motion(path), path.stat(), stamp_of(path)
        other = tmp_path / "other" if way == "replaced" else path
        other.write_bytes(path.read_bytes())
        if way == "replaced":
            other.replace(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert stamp_of(path) != stamp and load_motion(path) is not first
        assert load_motion(path) is load_motion(path)


def test_a_partly_loaded_inflation_gives_the_same_clip(small_model, motion):
    """As the host loads it where memory is short: most layers wait in slow memory and are cast when called."""
    from stillmotion.nodes.attach import KEY as OURS

    model = small_model()
    video = attach(model, motion(model))
    whole = sample(video, noise())
    (patcher,) = video.get_additional_models_with_key(OURS)
    patcher.detach()
    patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    assert patcher.model.model_lowvram
    assert torch.equal(sample(video, noise()), whole)


def test_wrappers_of_other_packs_still_run_around_ours(small_model, motion):
    from comfy.patcher_extension import WrappersMP

    model = small_model()
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    for attach_first in (True, False):
        video = attach(model, motion(model)) if attach_first else model.clone()
        video.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", count)
        video = video if attach_first else attach(video, motion(model))
        sample(video, noise(), steps=1)
    assert len(calls) == 2


def test_a_run_that_breaks_off_leaves_the_next_one_equal(small_model, motion):
    model = small_model()
    video = attach(model, motion(model))
    whole = sample(video, noise())

    def cancel(*args):
        raise KeyboardInterrupt

    broken = video.clone()
    broken.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(KeyboardInterrupt):
        sample(broken, noise())
    assert torch.equal(sample(video, noise()), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_any_precision_run_on_a_base_of_any(small_model, motion, dtype):
    from safetensors.torch import load_file

    model = small_model()
    path = motion(model)
    exact = sample(attach(model, path), noise())
    from stillmotion.networks.motion_file import read_motion_info

    half = path.with_name("half.safetensors")
    write_motion_file(half, {n: t.to(dtype) for n, t in load_file(path).items()}, read_motion_info(path))
    torch.testing.assert_close(sample(attach(model, half), noise()), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_gives_about_the_same_clip(small_model, motion, dtype):
    exact, half = small_model(), small_model(dtype=dtype)
    half.model.diffusion_model.load_state_dict(exact.model.diffusion_model.state_dict())
    path = motion(exact)
    theirs, ours = sample(attach(exact, path), noise()), sample(attach(half, path), noise())
    assert (theirs - ours).abs().mean() < 0.03 * theirs.abs().mean()


def test_a_file_of_another_family_is_refused(small_model, motion):
    path = motion(small_model("sd21"))
    with pytest.raises(MotionFileError, match="made for sd21 models; this model is sd15"):
        attach(small_model("sd15"), path)


def test_a_clip_length_that_does_not_divide_the_latent_is_refused(small_model, motion):
    model = small_model()
    video = attach(model, motion(model), frames_per_clip=3)
    with pytest.raises(ValueError, match="4 frames, which are no whole number of clips of 3"):
        sample(video, noise())


def test_files_that_ask_for_different_clip_lengths_are_refused(small_model, motion):
    model = small_model()
    video = attach(attach(model, motion(model, "a"), frames_per_clip=2), motion(model, "b"), frames_per_clip=4)
    with pytest.raises(ValueError, match=r"\[2, 4\]"):
        sample(video, noise())


def test_a_single_frame_is_warned_about(small_model, motion, caplog):
    model = small_model()
    sample(attach(model, motion(model)), noise(1))
    assert "motion.safetensors was trained on clips of 4 frames; here it sees 1 at once" in caplog.text


def test_animatediff_evolved_on_the_same_model_is_refused(small_model, motion):
    model = small_model()
    video = attach(model, motion(model))
    video.set_additional_models("ADE", [small_model()])
    with pytest.raises(ValueError, match="AnimateDiff-Evolved and Stillmotion"):
        sample(video, noise())


def test_the_memory_estimate_makes_room_for_our_layers(small_model, motion):
    from stillmotion.nodes.attach import prepare_sampling

    model = small_model()
    video = attach(model, motion(model))
    asked = []
    prepare_sampling(lambda model, shape, *rest: asked.append(shape), video, (FRAMES, 4, 8, 6), {})
    assert asked[0][0] > FRAMES and asked[0][1:] == [4, 8, 6]


class Window:
    dim, index_list, total_frames = 0, [8, 9, 10], 11


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, range(6)),
        ({"cond_or_uncond": [1, 0]}, range(3)),
        ({"cond_or_uncond": [1, 0], "context_window": Window()}, [8, 9, 10]),
        ({"cond_or_uncond": [1, 0], "ad_params": {"sub_idxs": [4, 5, 6]}}, [4, 5, 6]),
        (
            {"cond_or_uncond": [1, 0], "context_window": type("Anchored", (Window,), {"causal_anchor_index": 0})()},
            range(3),
        ),
        ({"context_window": Window()}, range(6)),
    ],
)
def test_the_clip_of_a_forward(options, expected):
    from stillmotion.nodes.attach import clip_of

    assert clip_of(6, options, 0) == Clip(tuple(expected))


def test_the_clip_of_an_anchored_window():
    from stillmotion.nodes.attach import clip_of

    window = type("Anchored", (Window,), {"causal_anchor_index": 0})()
    assert clip_of(4, {"context_window": window}, 0) == Clip((0, 8, 9, 10))


def test_core_context_windows_run_on_their_own_frames(small_model, motion):
    """Windows that do not overlap are separate clips."""
    from comfy import context_windows as core

    model = small_model()
    video = attach(model, motion(model))
    windowed = video.clone()
    windowed.model_options["context_handler"] = core.IndexListContextHandler(
        core.get_matching_context_schedule("standard_static"),
        core.get_matching_fuse_method("flat"),
        context_length=FRAMES,
        context_overlap=0,
        dim=0,
    )
    windowed.model_options[
        "context_handler"
    ].causal_window_fix = False  # else a window has its predecessor's last frame
    both = torch.cat([noise(seed=0), noise(seed=1)])
    runs = torch.cat([sample(video, clip) for clip in both.split(FRAMES)])
    torch.testing.assert_close(sample(windowed, both), runs, rtol=1e-5, atol=1e-4)


def test_a_file_trained_on_animatediffs_schedule_brings_it(small_model, motion):
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    model = small_model()
    path = motion(model, schedule="linear")
    assert model.get_model_object("model_sampling").sigma_max.item() == pytest.approx(14.615, abs=1e-3)
    scheduled = set_schedule(attach(model, path), load_motion(path), from_file=True)
    assert scheduled.get_model_object("model_sampling").sigma_max.item() == pytest.approx(25.146, abs=1e-3)
    assert torch.isfinite(sample(scheduled, noise())).all()


def test_the_models_own_schedule_is_kept_with_a_warning(small_model, motion, caplog):
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    model = small_model()
    path = motion(model, schedule="linear")
    video = attach(model, path)
    assert set_schedule(video, load_motion(path), from_file=False) is video
    assert "trained on another noise schedule (linear)" in caplog.text


def test_a_matching_schedule_changes_nothing(small_model, motion, caplog):
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    model = small_model()
    path = motion(model)
    video = attach(model, path)
    assert set_schedule(video, load_motion(path), from_file=True) is video and not caplog.text


def test_a_base_that_predicts_something_else_is_refused(small_model, motion):
    import comfy.model_base
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    model = small_model()
    path = motion(model)
    model.model.model_type = comfy.model_base.ModelType.V_PREDICTION
    with pytest.raises(MotionFileError, match="predict epsilon; this one predicts v_prediction"):
        set_schedule(attach(model, path), load_motion(path), from_file=True)


def test_a_schedule_that_another_node_set_is_kept_with_a_warning(small_model, motion, caplog):
    import comfy.model_sampling
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    model = small_model()
    path = motion(model)
    other = comfy.model_sampling.ModelSamplingDiscrete(zsnr=True)
    model.add_object_patch("model_sampling", other)
    kept = set_schedule(attach(model, path), load_motion(path), from_file=True)
    assert kept.get_model_object("model_sampling") is other
    assert "another noise schedule" in caplog.text
