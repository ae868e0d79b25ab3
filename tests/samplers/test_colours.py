import pytest
import torch
from stillmotion.samplers.colours import colours_matched
from stillmotion.samplers.conditions import KnownPixels, hole, key_frames, nothing


def drawn(frames, seed=0):
    return 0.3 + 0.3 * torch.rand(frames, 16, 16, 3, generator=torch.Generator().manual_seed(seed))


def drifted(clip):
    """Later frames get darker and of less contrast, one channel more than the others."""
    share = torch.linspace(0, 1, len(clip)).view(-1, 1, 1, 1)
    return clip * (1 - share * torch.tensor([0.4, 0.2, 0.1])) - 0.05 * share


def test_frames_take_mean_and_contrast_of_the_first_frame():
    clip = drawn(5)
    given = key_frames(clip[:1], [0], 5)
    out = colours_matched(drifted(clip), given)
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(out, dim=(1, 2)), statistic(clip[:1], dim=(1, 2)).expand(5, 3), atol=1e-5)
    assert (drifted(clip)[4].mean() - clip[0].mean()).abs() > 0.05


def test_each_frame_follows_the_given_frame_that_is_nearest():
    dark, light = drawn(1), drawn(1, seed=1) + 0.3
    given = key_frames(torch.cat([dark, light]), [0, -1], 6)
    out = colours_matched(drawn(6, seed=2), given)
    means = out.mean((1, 2, 3))
    assert torch.allclose(means[:3], dark.mean().expand(3), atol=1e-5)
    assert torch.allclose(means[3:], light.mean().expand(3), atol=1e-5)


def test_frames_that_are_given_in_part_are_compared_where_they_are_known():
    truth = drawn(3)
    mask = torch.zeros(16, 16)
    mask[:, 8:] = 1
    held = truth.clone()
    held[:, :, 8:] = 0  # of what is to be made the given frames may hold anything
    made = 0.5 * truth + 0.1
    assert torch.allclose(colours_matched(made, hole(held, mask)), truth, atol=1e-5)


def test_frames_that_are_known_in_grey_alone_are_passed_over_for_one_that_is_known_whole():
    clip = drawn(3)
    known = torch.tensor([1.0, 0.0, 0.996]).view(3, 1, 1).expand(3, 16, 16)
    out = colours_matched(drifted(clip), KnownPixels.of(clip, known))
    assert out.isfinite().all() and torch.allclose(out.mean((1, 2)), clip[0].mean((0, 1)).expand(3, 3), atol=1e-5)
    with pytest.raises(ValueError, match="given whole"):
        colours_matched(drifted(clip), KnownPixels.of(clip, known.clamp(max=0.9)))


def test_flat_colours_are_moved_and_not_stretched():
    flat = torch.full((2, 8, 8, 3), 0.4)
    out = colours_matched(flat + 0.2, key_frames(flat[:1], [0], 2))
    assert torch.allclose(out, flat, atol=1e-6)


def test_strength_is_the_way_between():
    clip = drawn(3)
    given, made = key_frames(clip[:1], [0], 3), drifted(clip)
    whole = colours_matched(made, given)
    assert torch.equal(colours_matched(made, given, 0), made)
    assert torch.allclose(colours_matched(made, given, 0.5), (made + whole) / 2, atol=1e-6)


def test_without_given_pixels_there_is_nothing_to_match():
    with pytest.raises(ValueError, match="there are none"):
        colours_matched(drawn(2), nothing(2, 16, 16))
    assert torch.equal(colours_matched(drawn(2), KnownPixels.of(drawn(2), torch.zeros(2, 16, 16)), 0), drawn(2))
