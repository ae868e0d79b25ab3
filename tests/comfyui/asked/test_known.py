"""Known pixels on a MODEL, through the host's own samplers."""

import pytest
import torch
from asked_clips import FRAMES, SCALE, noise, sample, windowed
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
