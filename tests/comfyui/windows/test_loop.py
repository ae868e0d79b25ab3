"""Clips whose last frame leads into their first, through the host's own samplers."""

import pytest
import torch
from windowed_clips import FRAMES, condition, noise, sample, windowed

NEAR = {"atol": 1e-3, "rtol": 1e-3}  # batches of other sizes round otherwise


def looping(model, window=FRAMES, overlap=0):
    from stillmotion.nodes.windowing import sampled_on_windows

    return sampled_on_windows(model, window, overlap, "pyramid", loop=True)


@pytest.fixture
def model(small_model):
    return small_model()


@pytest.mark.parametrize("window, overlap", [(FRAMES, 0), (64, 0), (4, 2)])
def test_frames_that_do_not_depend_on_each_other_stay_as_they_are(model, window, overlap):
    prompt = condition(1, rows=FRAMES)
    plain = sample(model, noise(), positive=prompt, steps=4)
    torch.testing.assert_close(
        sample(looping(model, window, overlap), noise(), positive=prompt, steps=4), plain, **NEAR
    )


def seen_by(model):
    """Notes the frames that layers are told of at each forward."""
    seen = []

    def note(executor, *args, **kwargs):
        options = kwargs.get("transformer_options") or args[5]
        seen.append(list(options["context_window"].index_list))
        return executor(*args, **kwargs)

    model.add_wrapper_with_key("diffusion_model", "test", note)
    return seen


def test_every_step_begins_with_another_frame_and_each_frame_follows_the_one_before(model):
    looped = looping(model)
    seen = seen_by(looped)
    sample(looped, noise(), cfg=1.0, steps=5)
    assert len(seen) == 5 and len({frames[0] for frames in seen}) == 5 and seen[0][0] == 0
    for frames in seen:
        assert frames == [(frames[0] + i) % FRAMES for i in range(FRAMES)]


def smoothing(model):
    """A network for which frames depend on those beside them, as those of a motion file do: but not across the cut."""
    model = model.clone()

    def smooth(executor, x, *args, **kwargs):
        padded = torch.cat([x[:1], x, x[-1:]])
        return executor((padded[:-2] + padded[1:-1] + padded[2:]) / 3, *args, **kwargs)

    model.add_wrapper_with_key("apply_model", "smooth", smooth)
    return model


def seam(clips):
    """The change from the last frame to the first, over the median of the others."""
    steps = [(clip - clip.roll(1, 0)).flatten(1).norm(dim=1) for clip in clips]
    return torch.tensor([each[0] / each[1:].median() for each in steps]).mean()


@pytest.mark.parametrize("window, overlap", [(FRAMES, 0), (6, 3)])
def test_the_last_frame_leads_into_the_first(model, window, overlap):
    smooth = smoothing(model)
    run = lambda model: [sample(model, noise(seed=seed), cfg=1.0, steps=12) for seed in range(4)]  # noqa: E731
    open_, closed = seam(run(windowed(smooth, window, overlap))), seam(run(looping(smooth, window, overlap)))
    print(f"seam over the median change: {open_:.2f} as it lies, {closed:.2f} with loop")
    assert closed < 1.3 < open_


def test_windows_that_are_set_later_keep_the_loop(model):
    handler = windowed(looping(model)).model_options["context_handler"]
    assert handler.loop and handler.context_length == 4
    assert not windowed(model).model_options["context_handler"].loop


def test_the_node_of_known_pixels_sets_it_on_the_windows_that_are_there(model):
    from stillmotion.nodes.windowing import looped

    for given, length in ((model, FRAMES), (windowed(model), 4)):
        handler = looped(given, FRAMES).model_options["context_handler"]
        assert handler.loop and handler.context_length == length
    assert "context_handler" not in model.model_options


def test_a_video_model_cannot_loop(wan):
    with pytest.raises(ValueError, match="loop is for image models with a motion file"):
        sample(looping(wan), torch.randn(1, 16, 3, 8, 8), condition(1), condition(2))
