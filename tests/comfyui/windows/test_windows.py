"""Temporal Windows through the host's own samplers: what travels with a window, and what a run leaves behind.

Without a motion file a U-Net sees each frame alone: with windows it must give what it gives without them.
"""

import copy

import pytest
import torch
from stillmotion.samplers.windows import FUSES, fuse, windows_of
from windowed_clips import (
    FRAMES,
    assert_windows_change_nothing,
    condition,
    guided,
    hints,
    noise,
    sample,
    video,
    windowed,
)

each_fuse = pytest.mark.parametrize("fuse", sorted(FUSES))


def test_frames_that_do_not_depend_on_each_other_are_the_same_bit_for_bit(model):
    """T5.4, also where a frame is in three windows, and with one condition instead of two."""
    assert_windows_change_nothing(model, noise())
    assert_windows_change_nothing(model, noise(), window=5, overlap=4)
    assert_windows_change_nothing(model, noise(), cfg=1.0)


def test_the_hosts_batches_change_only_the_rounding(small_model):
    model = small_model()
    torch.testing.assert_close(sample(windowed(model), noise()), sample(model, noise()), rtol=0, atol=1e-3)


def test_a_long_clip_is_warned_about_where_the_layers_see_it_whole(small_model, motion, caplog):
    video = motion(small_model())
    sample(windowed(video, window=4), noise(10))
    assert "was trained on" not in caplog.text
    sample(video, noise(10))
    assert "was trained on clips of 4 frames; here it sees 10 at once" in caplog.text


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde", "uni_pc"])
def test_samplers_that_look_between_the_steps(model, sampler):
    assert_windows_change_nothing(model, noise(), sampler=sampler, steps=3)


def test_the_windows_of_a_clip_are_fused_at_each_step(small_model, motion):
    """One step to the end makes the clean clip that the model predicts: what it predicts for the windows, fused."""
    model = motion(small_model())
    for name in FUSES:
        windows = windows_of(FRAMES, 4, 2)
        alone = [sample(model, noise()[list(w)], steps=1) for w in windows]
        weights = [FUSES[name](w, FRAMES, 2) for w in windows]
        got = sample(windowed(model, fuse=name), noise(), steps=1)
        torch.testing.assert_close(got, fuse(alone, windows, weights, FRAMES), rtol=0, atol=2e-4)
    assert (got - sample(model, noise(), steps=1)).abs().max() > 0.01


def test_the_order_of_the_windows_and_the_motion_does_not_matter(small_model, motion):
    model = small_model()
    torch.testing.assert_close(sample(windowed(motion(model)), noise()), sample(motion(windowed(model)), noise()))


def test_layers_and_other_packs_are_told_which_frames_they_see(model):
    sample(windowed(model), noise(), steps=1)
    told = [list(options["context_window"].index_list) for options in model.seen]
    assert told == [list(w) for w in windows_of(FRAMES, 4, 2)]
    assert [options["ad_params"]["sub_idxs"] for options in model.seen] == told
    assert {options["ad_params"]["full_length"] for options in model.seen} == {FRAMES}
    model.seen.clear()
    sample(windowed(model), noise(4), steps=1)
    assert all("context_window" not in options and "ad_params" not in options for options in model.seen)


@pytest.mark.parametrize("rows", [FRAMES, 3, FRAMES + 2], ids=["one each", "fewer, repeated", "more, cut off"])
def test_a_prompt_for_each_frame_travels_with_its_window(model, rows):
    same = assert_windows_change_nothing(model, noise(), condition(1, rows=rows))
    assert (same - sample(model, noise(), condition(1, rows=1))).abs().max() > 0.01


def test_known_pixels_and_their_masks_travel_with_their_window(model):
    """A base for inpainting gets them as further channels of its input."""
    model.model.set_inpaint()
    known = {"concat_latent_image": noise(seed=5), "concat_mask": (torch.rand(FRAMES, 1, 64, 48) > 0.5).float()}
    with_one = assert_windows_change_nothing(model, noise(), condition(1, **known), condition(2, **known))
    known["concat_latent_image"] = noise(seed=5).flip(0)
    assert (sample(model, noise(), condition(1, **known), condition(2, **known)) - with_one).abs().max() > 0.01


def test_a_noise_mask_for_each_frame_keeps_what_it_covers(model):
    mask = (torch.arange(FRAMES) % 3 > 0).float().view(-1, 1, 1, 1).expand(FRAMES, 1, 64, 48)
    options = {"latent": noise(seed=3), "noise_mask": mask}
    got = assert_windows_change_nothing(model, noise(), **options)
    torch.testing.assert_close(got[::3], noise(seed=3)[::3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, FRAMES])
def test_the_mask_of_a_condition_travels_with_its_window(model, rows):
    mask = (torch.rand(rows, 64, 48) > 0.3).float()
    assert_windows_change_nothing(model, noise(), condition(1, mask=mask) + condition(4))


def test_a_mask_that_is_repeated_over_the_clip(model):
    mask = (torch.rand(4, 64, 48) > 0.3).float()
    assert_windows_change_nothing(model, noise(12), condition(1, mask=mask) + condition(4), window=5)


def test_a_mask_that_fits_no_clip_is_refused(model):
    positive = condition(1, mask=torch.ones(4, 64, 48))
    with pytest.raises(ValueError, match="has 4 frames, the clip 11: give one mask, or one for each frame"):
        sample(windowed(model), noise(), positive)


def test_an_area_and_a_range_of_steps(model):
    part = condition(4, area=(4, 3, 2, 1), strength=0.7)
    late = condition(5, start_percent=0.5, end_percent=1.0)
    assert_windows_change_nothing(model, noise(), condition(1) + part + late, steps=3)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_clip_that_is_no_longer_than_a_window_is_sampled_whole(small_model, motion, frames):
    model = motion(small_model())
    assert torch.equal(sample(windowed(model), noise(frames)), sample(model, noise(frames)))


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [(4, 4, "The overlap is 4 frames; windows of 4 frames allow 0 to 3"), (0, 0, "A window has 0 frames")],
)
def test_windows_that_cannot_be_are_refused_by_the_node(model, window, overlap, message):
    with pytest.raises(ValueError, match=message):
        windowed(model, window, overlap)


def test_a_latent_without_frames_is_refused(model):
    with pytest.raises(ValueError, match=r"height, width\); this one is \(2, 4, 80\)"):
        sample(windowed(model), torch.randn(2, 4, 80))


def test_a_latent_of_a_video_model_is_refused_by_one_of_pictures(small_model, motion):
    for model in (windowed(small_model()), motion(small_model())):
        with pytest.raises(ValueError, match=r"a video model's, \(2, 4, 11, 8, 6\), and this model takes \(frames,"):
            sample(model, video())


def test_several_clips_in_a_batch_are_refused(small_model, motion):
    model = windowed(motion(small_model(), frames_per_clip=4))
    with pytest.raises(ValueError, match="here are 8 frames in clips of 4: set frames_per_clip of the STUNet"):
        sample(model, noise(8))
    sample(model, noise(4))


def test_the_last_windows_count(model):
    """Also where ComfyUI's own were set before, or are set after."""
    from comfy import context_windows as core

    twice = windowed(windowed(model, 8, 1), 4, 2)
    assert twice.model_options["context_handler"].context_length == 4
    assert len(twice.get_wrappers("outer_sample", "stillmotion_windows")) == 1
    schedule, method = core.get_matching_context_schedule("standard_static"), core.get_matching_fuse_method("flat")
    twice.model_options["context_handler"] = core.IndexListContextHandler(schedule, method, 8, 4)
    assert torch.isfinite(sample(twice, noise())).all()
    core.create_prepare_sampling_wrapper(twice)
    assert_windows_change_nothing(twice, noise())


def test_a_model_with_windows_leaves_the_one_without_as_it_was(small_model, motion):
    """A-B-A, both ways round."""
    plain = motion(small_model())
    options = copy.deepcopy({k: v for k, v in plain.model_options.items() if k != "transformer_options"})
    cut = windowed(plain)
    handler = dict(vars(cut.model_options["context_handler"]))
    first, second = sample(plain, noise()), sample(cut, noise())
    assert vars(cut.model_options["context_handler"]) == handler
    assert torch.equal(sample(plain, noise()), first) and torch.equal(sample(cut, noise()), second)
    assert (first - second).abs().max() > 0.01
    assert {k: v for k, v in plain.model_options.items() if k != "transformer_options"} == options
    assert "context_window" not in plain.model_options["transformer_options"]


def test_a_run_in_the_middle_of_another_does_not_see_its_windows(small_model, motion):
    """It has as many frames as the window that runs."""
    outside, inside = windowed(motion(small_model())), motion(small_model())
    expected, alone = sample(outside, noise()), sample(inside, noise(4, seed=9))
    within = []

    def sample_too(args):
        if not within:
            within.append(sample(inside, noise(4, seed=9)))
        return args["denoised"]

    nested = outside.clone()
    nested.set_model_sampler_post_cfg_function(sample_too)
    assert torch.equal(sample(nested, noise()), expected) and torch.equal(within[0], alone)


def test_a_cancelled_run_leaves_the_next_one_as_it_was(model, control):
    """Cancelled after two windows of the first step, not at its end."""
    import comfy.model_management
    from comfy.patcher_extension import WrappersMP

    net = control(hints(FRAMES), previous=control(hints(FRAMES, seed=1)))
    whole = sample(windowed(model), noise(), guided(net))
    calls = []

    def cancel(executor, *args):
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return executor(*args)

    cancelled = windowed(model)
    cancelled.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "cancel", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(cancelled, noise(), guided(net))
    assert len(calls) == 2
    assert torch.equal(sample(windowed(model), noise(), guided(net)), whole)


def test_a_cache_of_one_window_does_not_answer_for_another(model):
    """EasyCache keeps, by the id of a condition, what the network added, and decides for the first one it sees."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    cached = EasyCacheNode.execute(model, 1e9, 0.0, 1.0, False).args[0]
    alone, plain = sample(cached, noise(12)[:4], steps=6), sample(model, noise(12), steps=6)
    got = sample(windowed(cached, overlap=0), noise(12), steps=6)
    assert torch.equal(got[:4], alone) and (alone - plain[:4]).abs().max() > 0.01
    assert torch.equal(got[4:], plain[4:])


def test_windows_of_a_video_have_ids_of_their_own(model):
    """Also where two begin with the same frame: the first one, and the second with the frame before it."""
    sample(windowed(model, 1, 0), video(), steps=1)
    ids = [id for options in model.seen for id in options["uuids"]]
    assert len(set(ids)) == len(ids) == 2 * FRAMES


def test_a_cache_of_whole_steps_works_with_windows(model):
    """LazyCache asks no window at all in a step that it skips."""
    from comfy_extras.nodes_easycache import LazyCacheNode

    cached = LazyCacheNode.execute(model, 1e9, 0.0, 1.0, False).args[0]
    lazy = assert_windows_change_nothing(cached, noise(), steps=6)
    assert (lazy - sample(model, noise(), steps=6)).abs().max() > 0.01


def test_the_memory_estimate_is_that_of_a_window(small_model, motion):
    """Our layers' share comes on top, whichever was attached first."""
    from comfy.patcher_extension import WrapperExecutor, WrappersMP

    def asked(model, shape=(FRAMES, 4, 8, 6)):
        wrappers = model.get_all_wrappers(WrappersMP.PREPARE_SAMPLING)
        executor = WrapperExecutor.new_executor(lambda model, shape, *args, **kwargs: list(shape), wrappers)
        return executor.execute(model, shape, {}, model_options=model.model_options)

    model = small_model()
    assert asked(windowed(model)) == [4, 4, 8, 6] and asked(model) == [FRAMES, 4, 8, 6]
    both = [asked(windowed(motion(model))), asked(motion(windowed(model)))]
    assert both[0] == both[1] and 4 < both[0][0] < FRAMES
    assert asked(windowed(model), (2, 4, FRAMES, 8, 6)) == [2, 4, 5, 8, 6]


def test_the_node(pack, small_model):
    node = pack["StillmotionTemporalWindows"]
    run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
    model = small_model()
    handler = run(model=model, window=8, overlap=2, fuse="flat").args[0].model_options["context_handler"]
    assert (handler.context_length, handler.context_overlap, handler.weights(range(3), 9, 2)) == (8, 2, [1.0] * 3)
    fuses = next(i for i in node.GET_SCHEMA().inputs if i.id == "fuse").options
    assert set(fuses) == set(FUSES)
