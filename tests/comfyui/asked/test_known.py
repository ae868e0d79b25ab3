"""Known pixels on a MODEL, through the host's own samplers."""

import pytest
import torch
from asked_clips import FRAMES, SCALE, condition, noise, sample, windowed
from stillmotion.networks.config import Condition, CrossFrames, InflationConfig
from stillmotion.samplers import conditions

KNOWN = InflationConfig(frame_attention=CrossFrames(), condition=Condition())
ALONE = InflationConfig(condition=Condition())


def with_known(model, c, m, **how):
    from stillmotion.nodes.known import with_known

    return with_known(model, c, m, "Known", **how)


def known(frames=FRAMES, seed=3):
    random = torch.Generator().manual_seed(seed)
    m = (torch.rand(frames, 1, 8, 6, generator=random) > 0.5).float()
    return torch.randn(frames, 4, 8, 6, generator=random) * m, m


def test_known_pixels_change_the_clip_and_leave_the_model_as_it_was(video):
    model = video(KNOWN)
    before = sample(model, noise())
    assert (sample(with_known(model, *known()), noise()) - before).abs().max() > 0.01
    assert torch.equal(sample(model, noise()), before)
    assert with_known(model, *known(), strength=0) is model
    nothing = with_known(model, torch.zeros(FRAMES, 4, 8, 6), torch.zeros(FRAMES, 1, 8, 6))
    torch.testing.assert_close(sample(nothing, noise()), before)


def test_frames_without_a_temporal_layer_see_their_own_known_pixels_alone(video):
    c, m = known()
    others = c.clone()
    others[2] += m[2]
    one, other = (sample(with_known(video(ALONE), value, m), noise()) for value in (c, others))
    assert torch.equal(one[[0, 1, 3]], other[[0, 1, 3]]) and not torch.equal(one[2], other[2])


@pytest.mark.parametrize("kind", ["ours", "core"])
def test_a_window_takes_its_frames_along(video, kind):
    """Without layers over time, windows change nothing: each frame has its own C and M in whatever window."""
    c, m = known(frames=8)
    model = with_known(video(ALONE), c, m)
    whole = sample(model, noise(frames=8))
    torch.testing.assert_close(sample(windowed(model, kind), noise(frames=8)), whole, rtol=1e-4, atol=1e-4)


def test_each_clip_of_a_batch_has_its_own(video):
    both = torch.cat([noise(seed=0), noise(seed=1)])
    pairs = [known(seed=seed) for seed in (3, 4)]
    c, m = (torch.stack(parts) for parts in zip(*pairs))
    batch = sample(with_known(video(KNOWN, frames_per_clip=FRAMES), c, m), both)
    runs = [sample(with_known(video(KNOWN), *pair), clip) for pair, clip in zip(pairs, both.split(FRAMES))]
    torch.testing.assert_close(batch, torch.cat(runs), rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="known of 2 clips"):
        sample(with_known(video(KNOWN), c, m), noise(), cfg=1.0)


def test_pixels_are_encoded_and_scaled_as_the_models_own_latents(video):
    from stillmotion.nodes.known import encoded

    class Vae:
        def encode(self, frames):
            return frames[:, ::8, ::8, :1].permute(0, 3, 1, 2).expand(-1, 4, -1, -1)

    image = torch.rand(64, 48, 3)
    c, m = encoded(video(KNOWN), Vae(), conditions.still(image, FRAMES))
    torch.testing.assert_close(c[0], SCALE * Vae().encode(image[None])[0])
    assert m[0].all() and not c[1:].any()


def test_another_size_and_a_file_without_a_condition_are_refused(video):
    c, m = known()
    with pytest.raises(ValueError, match="40 x 64 pixels, and what is sampled has 48 x 64"):
        sample(with_known(video(KNOWN), c[..., :5], m[..., :5]), noise())
    with pytest.raises(ValueError, match="clips of 4 frames, and what is sampled has 8"):
        sample(with_known(video(KNOWN), c, m), noise(frames=8))
    plain = video(InflationConfig(frame_attention=CrossFrames()))
    with pytest.raises(ValueError, match="the part 'condition'.*`python -m trainer condition` made"):
        with_known(plain, c, m)


def test_the_network_sees_a_given_first_frame_clean_and_the_result_keeps_it(of_first_frame, monkeypatch):
    import comfy.sample
    import stillmotion.nodes.attach as attach
    from stillmotion.nodes.known import with_first_frame

    seen, run_unet = [], attach.run_unet
    monkeypatch.setattr(
        attach, "run_unet", lambda *args, **kw: seen.append((args[2], args[3])) or run_unet(*args, **kw)
    )
    first = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(5)) / SCALE
    plain = of_first_frame()
    model = with_first_frame(plain, first, "Known")
    mask = torch.ones(FRAMES, 1, 8, 6)
    mask[0] = 0
    out = comfy.sample.sample(
        *(model, noise(), 3, 3.0, "euler", "normal", condition(1), condition(2), first.expand(FRAMES, -1, -1, -1)),
        noise_mask=mask,
        disable_pbar=True,
        seed=0,
    )
    torch.testing.assert_close(out[0], first[0], rtol=1e-5, atol=1e-4)
    for clip, x in seen:
        rows = x.unflatten(0, (-1, clip.frames))
        torch.testing.assert_close(rows[:, 0], (first * SCALE).expand(len(rows), -1, -1, -1), rtol=1e-5, atol=1e-5)
        assert not torch.isclose(rows[:, 1:], (first * SCALE)[:, None]).all()
    other = with_first_frame(plain, first + 1, "Known")
    assert (sample(other, noise()) - sample(model, noise())).abs()[1:].max() > 1e-3


def test_a_file_that_was_trained_on_noisy_first_frames_is_refused(of_first_frame):
    from stillmotion.nodes.known import with_first_frame

    with pytest.raises(ValueError, match="fewshot --first-frame clean"):
        with_first_frame(of_first_frame("noisy"), torch.zeros(1, 4, 8, 6), "Known")


def test_a_first_frame_of_another_size_is_refused_with_both(of_first_frame):
    from stillmotion.nodes.known import with_first_frame

    with pytest.raises(ValueError, match="1 first frames of 40 x 64 pixels for 2 clips of 48 x 64"):
        sample(with_first_frame(of_first_frame(), torch.zeros(1, 4, 8, 5), "Known"), noise())


def test_windows_without_the_first_frame_are_left_alone():
    from stillmotion.networks.clip import Clip
    from stillmotion.nodes.asks import Asks, with_first_frames

    x, asks = torch.randn(8, 4, 8, 6), (Asks(), Asks(first=torch.zeros(1, 4, 8, 6)))
    assert with_first_frames(x, asks, Clip((4, 5, 6, 7))) is x
    inside = with_first_frames(x, asks, Clip((7, 0, 1, 2)))
    assert not inside[[1, 5]].any() and torch.equal(inside[[0, 2, 3, 4]], x[[0, 2, 3, 4]])
