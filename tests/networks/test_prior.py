"""HiGen's spatial prior against its formula."""

import pytest
import torch
from stillmotion.networks.asked import Given
from stillmotion.networks.prior import PriorStem


def random_stem(absent="nothing", channels=32):
    stem = PriorStem(channels, absent)
    for parameter in stem.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return stem.requires_grad_(False)


def test_a_new_stem_adds_nothing_and_learns_from_the_first_step():
    stem, x = PriorStem(32, "nothing"), torch.randn(6, 32, 5, 7)
    added = stem(x, Given(torch.randn(1, 4, 5, 7)), 3, 3)
    assert added.shape == x.shape and not added.any()
    added.square().add(added).sum().backward()
    assert stem.conv.weight.grad.any() and stem.conv.bias.grad.any()


def test_it_is_a_first_convolution_of_eight_channels():
    """u = ConvStem_s(z_t) + ConvStem_t(z_s) is one convolution of both, with [W_s | W_t] and b_s + b_t."""
    stem, first = random_stem(), torch.nn.Conv2d(4, 32, 3, padding=1)
    noisy, still = torch.randn(2 * 3, 4, 5, 7), torch.randn(2, 4, 5, 7)
    x = first(noisy)
    both = torch.nn.Conv2d(8, 32, 3, padding=1)
    both.weight.data = torch.cat([first.weight, stem.conv.weight], 1)
    both.bias.data = first.bias + stem.conv.bias
    expected = both(torch.cat([noisy, still.repeat_interleave(3, 0)], 1))
    torch.testing.assert_close(x + stem(x, Given(still), 3, 3), expected, rtol=0, atol=1e-5)


def test_each_clip_has_its_own_and_one_is_for_all():
    stem, x, stills = random_stem(), torch.randn(2 * 3, 32, 5, 7), torch.randn(2, 4, 5, 7)
    both = stem(x, Given(stills), 3, 3)
    for clip in (0, 1):
        alone = stem(x[:3], Given(stills[clip : clip + 1]), 3, 3)
        torch.testing.assert_close(both[3 * clip : 3 * clip + 3], alone, rtol=0, atol=1e-6)
    shared = stem(x, Given(stills[:1]), 3, 3)
    torch.testing.assert_close(shared[:3], shared[3:], rtol=0, atol=0)


def test_a_weight_counts_for_its_clip_alone():
    stem, x, stills = random_stem(), torch.randn(3 * 2, 32, 5, 7), torch.randn(3, 4, 5, 7)
    whole = stem(x, Given(stills), 2, 2)
    weighted = stem(x, Given(stills, torch.tensor([1.0, 0.5, 0.0])), 2, 2)
    torch.testing.assert_close(weighted[:2], whole[:2])
    torch.testing.assert_close(weighted[2:4], whole[2:4] / 2)
    assert not weighted[4:].any()


def test_without_a_prior_ours_adds_nothing_and_the_release_its_bias():
    x = torch.randn(2 * 3, 32, 5, 7)
    assert random_stem()(x, None, 3, 3) is None
    release = random_stem("zero")
    torch.testing.assert_close(release(x, None, 3, 3), release.conv.bias.view(1, -1, 1, 1).expand_as(x))
    left_out = release(x, Given(torch.randn(2, 4, 5, 7), torch.tensor([1.0, 0.0])), 3, 3)
    torch.testing.assert_close(left_out[3:], release.conv.bias.view(1, -1, 1, 1).expand(3, 32, 5, 7))


def test_a_single_frame_is_left_alone_by_ours_and_not_by_the_release():
    x, still = torch.randn(2, 32, 5, 7), Given(torch.randn(2, 4, 5, 7))
    assert random_stem()(x, still, 1, 1) is None
    assert random_stem("zero")(x, still, 1, 1).any()
    assert random_stem()(x, still, 1, 16).any(), "a window of one frame of a longer clip is no still"


def test_another_size_is_refused_with_both():
    with pytest.raises(ValueError, match=r"of 6 x 5 cells \(48 x 40 pixels\).* has 7 x 5 \(56 x 40\)"):
        random_stem()(torch.randn(3, 32, 5, 7), Given(torch.randn(1, 4, 5, 6)), 3, 3)
