"""Lumiere's condition against its formula: a first convolution of nine channels."""

import pytest
import torch
from stillmotion.networks.asked import Given
from stillmotion.networks.condition import GREY_LATENT, ConditionStem
from stillmotion.networks.config import Condition
from stillmotion.networks.formats.inpainting import (
    OF_INPAINTING,
    in_inpainting_order,
    in_lumieres_order,
    inpainting_from_stem,
    stem_from_inpainting,
)
from torch import nn

FRAMES, SIZE = 3, (5, 7)


def random_stem(**how):
    stem = ConditionStem(32, **how)
    nn.init.normal_(stem.conv.weight, std=0.2)
    return stem.requires_grad_(False)


def known(clips=2, frames=FRAMES):
    """C and M, masked as they are."""
    m = (torch.rand(clips, frames, 1, *SIZE) > 0.5).float()
    return torch.cat([torch.randn(clips, frames, 4, *SIZE) * m, m], 2)


def test_a_new_stem_adds_nothing_and_learns_from_the_first_step():
    stem, x = ConditionStem(32), torch.randn(6, 32, *SIZE)
    added = stem(x, Given(known()), FRAMES, range(FRAMES))
    assert added.shape == x.shape and not added.any()
    added.square().add(added).sum().backward()
    assert stem.conv.weight.grad.flatten(2).any(-1).all()


def test_it_is_a_first_convolution_of_nine_channels():
    stem, first, nine = random_stem().double(), nn.Conv2d(4, 32, 3, padding=1).double(), nn.Conv2d(9, 32, 3, padding=1)
    noisy, given = torch.randn(6, 4, *SIZE).double(), known().double()
    nine.weight.data, nine.bias.data = torch.cat([first.weight, stem.conv.weight], 1), first.bias
    x = first(noisy)
    expected = nine(torch.cat([noisy, given.flatten(0, 1)], 1))
    torch.testing.assert_close(x + stem(x, Given(given), FRAMES, range(FRAMES)), expected, rtol=0, atol=1e-6)


def test_nothing_known_and_no_condition_are_the_same():
    x = torch.randn(6, 32, *SIZE)
    assert random_stem()(x, None, FRAMES, range(FRAMES)) is None
    assert not random_stem()(x, Given(torch.zeros(1, FRAMES, 5, *SIZE)), FRAMES, range(FRAMES)).any()
    stem = random_stem(mask="generated", blank="vae_grey")
    blank = torch.tensor([*GREY_LATENT, 0.0]).view(5, 1, 1).expand(1, FRAMES, 5, *SIZE)
    without = stem(x, None, FRAMES, range(FRAMES))
    assert without.any()
    torch.testing.assert_close(without, stem(x, Given(blank), FRAMES, range(FRAMES)))
    dropped = stem(x, Given(known(), torch.tensor([1.0, 0.0])), FRAMES, range(FRAMES))
    torch.testing.assert_close(dropped[3:], without[3:])
    assert not torch.isclose(dropped[:3], without[:3]).all()


def test_a_window_takes_its_own_frames_of_what_is_known():
    stem, given = random_stem(), known(frames=8)
    whole = stem(torch.randn(16, 32, *SIZE), Given(given), 8, range(8)).unflatten(0, (2, 8))
    window = stem(torch.randn(6, 32, *SIZE), Given(given), 8, [2, 5, 7]).unflatten(0, (2, 3))
    torch.testing.assert_close(window, whole[:, [2, 5, 7]], rtol=0, atol=1e-6)


def test_one_condition_is_for_all_clips():
    stem, given = random_stem(), known(clips=1)
    added = stem(torch.randn(6, 32, *SIZE), Given(given), FRAMES, range(FRAMES))
    assert torch.equal(added[:3], added[3:]) and added.any()


def test_another_size_or_length_is_refused_with_both():
    stem, given = random_stem(), Given(known())
    with pytest.raises(ValueError, match=r"56 x 40 pixels, and what is sampled has 48 x 40"):
        stem(torch.randn(6, 32, 5, 6), given, FRAMES, range(FRAMES))
    with pytest.raises(ValueError, match="clips of 3 frames, and what is sampled has 4"):
        stem(torch.randn(8, 32, *SIZE), given, 4, range(4))


def test_the_orders_of_channels_are_permutations_of_each_other():
    weight = torch.randn(32, 9, 3, 3)
    ours = in_lumieres_order(weight)
    assert torch.equal(in_inpainting_order(ours), weight)
    assert torch.equal(ours[:, 4:8], weight[:, 5:]) and torch.equal(ours[:, 8], weight[:, 4])


def test_an_inpainting_models_first_convolution_becomes_a_stem_and_comes_back():
    """The mask that its channel sees is turned round as a tensor, which is exact at the border too."""
    first, nine, given = nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(9, 32, 3, padding=1), known()
    nine.weight.data[:, :4], nine.bias.data = first.weight.data, first.bias.data
    stem = random_stem(mask=OF_INPAINTING.mask, blank=OF_INPAINTING.blank)
    stem.conv.weight.data = stem_from_inpainting(nine.weight, nine.bias, first.weight, first.bias)
    noisy, rows = torch.randn(6, 4, *SIZE), given.flatten(0, 1)
    c, m = rows[:, :4], rows[:, 4:]
    x = first(noisy)
    theirs = nine(torch.cat([noisy, 1 - m, c], 1))
    torch.testing.assert_close(x + stem(x, Given(given), FRAMES, range(FRAMES)), theirs, rtol=0, atol=1e-6)
    assert torch.equal(inpainting_from_stem(stem.conv.weight, first.weight, OF_INPAINTING), nine.weight)


def test_what_a_stem_cannot_express_is_refused():
    first, nine = nn.Conv2d(4, 32, 3), nn.Conv2d(9, 32, 3)
    with pytest.raises(ValueError, match="another first convolution than the base"):
        stem_from_inpainting(nine.weight, nine.bias, first.weight, first.bias)
    with pytest.raises(ValueError, match=r"\(32, 4, 3, 3\); an inpainting model's for this base is \(32, 9, 3, 3\)"):
        stem_from_inpainting(first.weight, first.bias, first.weight, first.bias)
    with pytest.raises(ValueError, match="of 'known' pixels and its blank 'zero'"):
        inpainting_from_stem(torch.randn(32, 5, 3, 3), first.weight, Condition())
