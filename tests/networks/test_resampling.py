"""Halved and doubled frame rates: on ramps, and against Lumiere's convolution that starts as the identity."""

from itertools import product

import pytest
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Resampling
from stillmotion.networks.inflation import Attached, Inflation, double_frames, halve_frames, resampled
from stillmotion.networks.resampling import pool_rows, repeat_rows
from stillmotion.networks.sites import Level, Structure
from torch import nn
from torch.nn import functional as F

SLIM = Structure((Level(6, (1,), (1,)), Level(8, (0,), (0,)), Level(8, (0,), (0,))), middle=None, context=16)
DOWN, UP = "input_blocks.2.0", "output_blocks.1.1"
WIDTHS = {DOWN: 6, UP: 8}


def inflation(trained=True):
    """Halves after level 0 and nowhere else."""
    made = Inflation(InflationConfig(resampling=Resampling((0,))), SLIM).double()
    for parameter in made.parameters() if trained else []:
        nn.init.normal_(parameter, std=0.3)
    return made


def activations(site, frames, clips=2):
    return torch.randn(clips * frames, WIDTHS[site], 3, 2, dtype=torch.float64)


def resample(site, x, attached, clip, finer=None):
    if site == UP:
        return double_frames(x, attached, UP, clip, finer or Clip.of(2 * clip.frames))
    return halve_frames(x, attached, DOWN, clip)


def ramp(values, width):
    """Frames that are the same number everywhere."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, width, 3, 2)


@pytest.mark.parametrize(
    "given, kept",
    [(range(8), [0, 2, 4, 6]), (range(5), [0, 2, 4]), (range(2), [0]), (range(1), [0])],
)
def test_a_new_halving_keeps_every_second_frame_exactly(given, kept):
    x = ramp([*given, *(100 + i for i in given)], 6)
    got = halve_frames(x, [Attached(inflation(trained=False))], DOWN, Clip.of(len(given)))
    assert torch.equal(got, ramp([*kept, *(100 + i for i in kept)], 6))


@pytest.mark.parametrize(
    "given, finer, repeated",
    [([0, 2], 4, [0, 0, 2, 2]), ([0, 2, 4], 5, [0, 0, 2, 2, 4]), ([0], 2, [0, 0]), ([0], 1, [0])],
)
def test_a_new_doubling_shows_every_frame_twice_exactly(given, finer, repeated):
    x = ramp([*given, *(100 + i for i in given)], 8)
    got = double_frames(x, [Attached(inflation(trained=False))], UP, Clip.of(len(given)), Clip.of(finer))
    assert torch.equal(got, ramp([*repeated, *(100 + i for i in repeated)], 8))


def lumiere(convolution, pixel):
    """Conv1d (k = 3) of `(frames, channels)` with weights that start as the identity: ours are what is beside it."""
    identity = nn.init.dirac_(torch.empty_like(convolution.weight.squeeze(-1)))
    return F.conv1d(pixel.T, identity + convolution.weight.squeeze(-1), convolution.bias, padding=1).T


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_halving_is_lumieres_convolution_of_which_every_second_frame_is_kept(frames):
    made, x = inflation(), activations(DOWN, frames)
    got = halve_frames(x, [Attached(made)], DOWN, Clip.of(frames)).unflatten(0, (2, -1))
    convolution, clips = made.at(DOWN, "resampling").conv, x.unflatten(0, (2, frames))
    for b, i, j in product(range(2), range(3), range(2)):
        torch.testing.assert_close(got[b, :, :, i, j], lumiere(convolution, clips[b, :, :, i, j])[::2])


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_doubling_is_lumieres_convolution_of_frames_shown_twice(frames):
    made, coarse = inflation(), Clip.of(frames).thinned()
    x = activations(UP, coarse.frames)
    got = double_frames(x, [Attached(made)], UP, coarse, Clip.of(frames)).unflatten(0, (2, -1))
    convolution, clips = made.at(UP, "resampling").conv, x.unflatten(0, (2, coarse.frames))
    for b, i, j in product(range(2), range(3), range(2)):
        twice = torch.stack([clips[b, f // 2, :, i, j] for f in range(frames)])
        torch.testing.assert_close(got[b, :, :, i, j], lumiere(convolution, twice))


@pytest.mark.parametrize("site", [DOWN, UP])
@pytest.mark.parametrize("strength", [0.5, 2.0, -1.0])
def test_a_strength_is_of_what_the_convolution_adds_and_not_of_the_frame_rate(site, strength):
    made, x = inflation(), activations(site, 5)
    plain = resample(site, x, [Attached(inflation(trained=False))], Clip.of(5))
    added = resample(site, x, [Attached(made)], Clip.of(5)) - plain
    assert added.abs().max() > 0.1
    got = resample(site, x, [Attached(made, temporal=strength)], Clip.of(5))
    torch.testing.assert_close(got, plain + strength * added)


def test_strength_zero_at_all_or_at_its_level_keeps_the_frame_rate_on_both_ways():
    made = inflation()
    for attached, expected in [
        (Attached(made), True),
        (Attached(made, levels=(0.1, 0.0, 0.0)), True),
        (Attached(made, temporal=0.0), False),
        (Attached(made, levels=(0.0, 1.0, 1.0)), False),
    ]:
        assert resampled([attached], DOWN) == resampled([attached], UP) == expected
        assert resampled([Attached(made, temporal=0.0), attached], DOWN) == expected
    assert not resampled([], DOWN)
    assert not resampled([Attached(made)], "input_blocks.4.0"), "only the first resize halves"
    assert not resampled([Attached(made)], "output_blocks.0.1")


@pytest.mark.parametrize("site, indices", [(DOWN, [10, 14, 20]), (UP, [10, 12, 14, 16, 20])])
def test_keyframes_are_those_of_the_frames_that_come_out(site, indices):
    """A window of a video: what is added to each of the resulting frames is multiplied by the factor of that frame."""
    window = Clip((10, 12, 14, 16, 20))
    clip, finer = (window, None) if site == DOWN else (window.thinned(), window)
    made, x = inflation(), activations(site, clip.frames)
    plain = resample(site, x, [Attached(inflation(trained=False))], clip, finer)
    added = resample(site, x, [Attached(made)], clip, finer) - plain
    attached = [Attached(made, keyframes=((10, 1.0), (20, 3.0)))]
    factors = torch.tensor([1 + (index - 10) / 5 for index in indices] * 2).double().view(-1, 1, 1, 1)
    torch.testing.assert_close(resample(site, x, attached, clip, finer), plain + factors * added)


@pytest.mark.parametrize("site", [DOWN, UP])
def test_two_inflations_halve_once_and_add_up_in_any_order(site):
    x, clip = activations(site, 5), Clip.of(5)
    plain = resample(site, x, [Attached(inflation(trained=False))], clip)
    two = [Attached(inflation(), 0.5), Attached(inflation(), 2.0)]
    total = plain + sum(resample(site, x, [one], clip) - plain for one in two)
    torch.testing.assert_close(resample(site, x, two, clip), total)
    torch.testing.assert_close(resample(site, x, two[::-1], clip), total)
    another = Attached(Inflation(InflationConfig(), SLIM))
    torch.testing.assert_close(resample(site, x, [another, *two], clip), total)


@pytest.mark.parametrize("site", [DOWN, UP])
def test_clips_of_one_batch_do_not_see_each_other(site):
    x, half = activations(site, 5).requires_grad_(), len(activations(site, 5)) // 2
    out = resample(site, x, [Attached(inflation())], Clip.of(5))
    (other,) = torch.autograd.grad(out[: len(out) // 2].square().sum(), x)
    assert other[:half].abs().amax((1, 2, 3)).min() > 0
    assert not other[half:].any()


@pytest.mark.parametrize("frames, finer", [(1, 1), (1, 2), (3, 5), (3, 6)])
def test_repeated_rows_are_row_f_half_of_each_clip(frames, finer):
    rows = torch.randn(3 * frames, 2, 4)
    expected = [rows[clip * frames + f // 2] for clip in range(3) for f in range(finer)]
    assert torch.equal(repeat_rows(rows, frames, finer), torch.stack(expected))


@pytest.mark.parametrize("frames, merged, sizes", [(6, 2, [2, 2, 2]), (5, 2, [2, 2, 1]), (7, 4, [4, 3]), (2, 4, [2])])
def test_pooled_rows_are_the_mean_of_neighbours_and_the_last_of_what_is_left(frames, merged, sizes):
    rows = torch.randn(3 * frames, 2, 4, dtype=torch.float64)
    expected = [group.mean(0) for clip in rows.split(frames) for group in clip.split(sizes)]
    torch.testing.assert_close(pool_rows(rows, frames, merged), torch.stack(expected))
