"""Temporal Windows of video models, whose latents have an axis of frames."""

import pytest
import torch
from stillmotion.samplers.windows import FUSES, fuse, windows_of
from windowed_clips import FRAMES, assert_windows_change_nothing, condition, sample, video, windowed


def test_the_clips_of_a_video_model(model):
    """Its latents are (clips, channels, frames, height, width), and its times and prompts are of clips."""
    assert_windows_change_nothing(model, video(), condition(1, rows=2), sampler="dpm_2")
    told = [list(options["context_window"].index_list) for options in model.seen if "context_window" in options]
    assert told[:5] == [list(range(max(0, w.start - 1), w.stop)) for w in windows_of(FRAMES, 4, 2)]
    assert not any("ad_params" in options for options in model.seen)  # whose frames are rows


@pytest.mark.parametrize("fuse_name", sorted(FUSES))
def test_a_video_architecture_of_the_host_sees_windows_and_the_frame_before_each(wan, fuse_name):
    """Wan, small and random. One step to the end is its prediction, for windows that begin one frame earlier."""
    windows, start = windows_of(FRAMES, 4, 2), video(channels=16)
    prompts = [[[torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2)]
    shown = [range(max(0, w.start - 1), w.stop) for w in windows]
    alone = [sample(wan, start[:, :, list(part)], *prompts, steps=1) for part in shown]
    own = [prediction[:, :, len(part) - 4 :] for prediction, part in zip(alone, shown)]
    weights = [FUSES[fuse_name](w, FRAMES, 2) for w in windows]
    got = sample(windowed(wan, fuse=fuse_name), start, *prompts, steps=1)
    torch.testing.assert_close(got, fuse(own, windows, weights, FRAMES, dim=2), rtol=1e-4, atol=1e-4)
    whole = sample(wan, start, *prompts, steps=1)
    assert (got - whole).abs().max() > 0.01 and not torch.equal(own[1], alone[1][:, :, :4])


def test_the_conditions_of_a_video_model_travel_with_their_window(model):
    known = {"noise_concat": video(channels=2, seed=4)}
    got = assert_windows_change_nothing(model, video(), condition(1, **known), condition(2, **known))
    flipped = {"noise_concat": known["noise_concat"].flip(2)}
    assert (sample(model, video(), condition(1, **flipped), condition(2, **flipped)) - got).abs().max() > 0.01


@pytest.mark.parametrize("frames", [8, FRAMES], ids=["as many as rows of pixels", "more"])
def test_the_mask_of_a_condition_of_a_video_model(model, frames):
    mask = (torch.rand(frames, 8, 6) > 0.3).float()
    assert_windows_change_nothing(model, video(frames), condition(1, mask=mask) + condition(4))
    assert_windows_change_nothing(model, video(frames), condition(1, mask=mask[:1]) + condition(4))


def test_what_windows_of_a_video_cannot_keep_is_refused(model):
    part = condition(1, area=(3, 8, 6, 2, 0, 0))
    with pytest.raises(ValueError, match="covers some of the frames only; use a mask"):
        sample(windowed(model), video(), part)
    with pytest.raises(ValueError, match="has 4 frames, the clip 11"):
        sample(windowed(model), video(), condition(1, mask=torch.ones(4, 8, 6)))


def test_guide_frames_are_refused():
    from stillmotion.nodes.windowing import check_video

    with pytest.raises(ValueError, match="do not work with guide frames"):
        check_video({"model_conds": {"keyframe_idxs": 0}}, 9)
