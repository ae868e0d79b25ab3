"""Noise over the frames of a clip: its covariance against the papers' formulas, and which numbers it is made of."""

import pytest
import torch
from einops import rearrange
from stillmotion.samplers.noise import STRATEGIES, correlate, draw_noise, offset_noise

CORRELATED = sorted(set(STRATEGIES) - {"iid"})
FRAMES = 7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def map_of(strategy, share, printed=False, frames=FRAMES):
    """The matrix that takes a clip's own draws to its noise: what each unit draw becomes, (frames, frames)."""
    unit_draws = torch.eye(frames, dtype=torch.float64)[:, :, None, None]
    return correlate(unit_draws, strategy, share, printed=printed)[:, :, 0, 0]


def covariance(noise):
    """Between frames (frames, ...), all numbers of a frame taken as draws of one variable."""
    flat = noise.flatten(1).double()
    return flat @ flat.T / flat.shape[1]


def common_part(common, own):
    """Covariance of frames common * e_s + own * e'_i, from the coefficients of e_s and of every e'_i."""
    e_s, own_parts = torch.full((FRAMES, 1), common, dtype=torch.float64), own * torch.eye(FRAMES, dtype=torch.float64)
    parts = torch.cat([e_s, own_parts], dim=1)
    return parts @ parts.T


def powers(a):
    """a^|i-j|, the correlation of a chain."""
    frame = torch.arange(FRAMES, dtype=torch.float64)
    return a ** (frame - frame[:, None]).abs()


def variance_one(covariance):
    deviation = covariance.diag().sqrt()
    return covariance / deviation / deviation[:, None]


PAPERS = {
    "iid": lambda a: torch.eye(FRAMES, dtype=torch.float64),
    "shared": lambda a: variance_one(common_part(a, 1 - a)),
    "autoregressive": powers,
    "mixed": lambda a: common_part(a / (1 + a**2) ** 0.5, 1 / (1 + a**2) ** 0.5),
    "progressive": lambda a: powers(a / (1 + a**2) ** 0.5),
}


def stated(strategy, share):
    """Variance 1, and the correlations that the strategy states of itself."""
    of = STRATEGIES[strategy].correlation
    rows = [[of(share, abs(i - j)) if i != j else 1.0 for j in range(FRAMES)] for i in range(FRAMES)]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frames_have_variance_one_and_correlate_as_the_strategy_states(strategy, share):
    matrix = map_of(strategy, share)
    torch.testing.assert_close(matrix @ matrix.T, stated(strategy, share), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frames_as_printed_have_the_variance_that_the_strategy_states(strategy, share):
    matrix = map_of(strategy, share, printed=True)
    of = STRATEGIES[strategy].printed_variance
    variances = torch.tensor([of(share, frame) for frame in range(FRAMES)], dtype=torch.float64)
    torch.testing.assert_close((matrix @ matrix.T).diag(), variances, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_has_a_rule_of_the_paper_exactly_where_that_has_another_variance(strategy):
    known = STRATEGIES[strategy]
    assert (known.as_printed is not None) == any(known.printed_variance(0.5, frame) != 1 for frame in range(FRAMES))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("strategy", PAPERS)
def test_frames_correlate_as_by_the_formula_of_the_paper(strategy, share):
    matrix = map_of(strategy, share)
    torch.testing.assert_close(matrix @ matrix.T, PAPERS[strategy](share), rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_drawn_noise_has_variance_one_and_correlates_as_stated(strategy):
    noise = draw_noise((FRAMES, 4, 300, 260), seeded(), strategy, 0.5)
    torch.testing.assert_close(covariance(noise), stated(strategy, 0.5), rtol=0, atol=0.01)


@pytest.mark.parametrize("share", [3.0, 1e9])
def test_the_share_of_mixed_and_progressive_noise_has_no_limit(share):
    for strategy in ("mixed", "progressive"):
        matrix = map_of(strategy, share)
        torch.testing.assert_close(matrix @ matrix.T, PAPERS[strategy](share), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share, variance", [(0.2, 0.68), (0.5, 0.5)])
def test_shared_noise_as_printed_is_the_formula(share, variance):
    matrix = map_of("shared", share, printed=True)
    torch.testing.assert_close(matrix @ matrix.T, common_part(share, 1 - share), rtol=0, atol=1e-12)
    noise = draw_noise((FRAMES, 4, 300, 260), seeded(), "shared", share, printed=True)
    torch.testing.assert_close(noise.var(dim=(1, 2, 3)), torch.full((FRAMES,), variance), rtol=0.01, atol=0)


@pytest.mark.parametrize("share, stationary", [(0.2, 0.667), (0.5, 0.333), (0.8, 0.111)])
def test_autoregressive_noise_as_printed_starts_at_one_and_falls(share, stationary):
    own = torch.randn(60, 4, 5, 3, dtype=torch.float64)
    noise = correlate(own, "autoregressive", share, printed=True)
    assert torch.equal(noise[0], own[0])
    torch.testing.assert_close(noise[1:], share * noise[:-1] + (1 - share) * own[1:])
    drawn = draw_noise((60, 4, 300, 260), seeded(), "autoregressive", share, printed=True)
    assert drawn[0].var().item() == pytest.approx(1, rel=0.01)
    assert drawn[-1].var().item() == pytest.approx(stationary, rel=0.01)


@pytest.mark.parametrize("strategy", [name for name, known in STRATEGIES.items() if not known.as_printed])
def test_what_is_printed_with_variance_one_stays_as_it_is(strategy):
    assert torch.equal(map_of(strategy, 0.7, printed=True), map_of(strategy, 0.7))


@pytest.mark.parametrize("printed", [False, True])
@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (2, 4, 3, 5, 2)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_shared_is_torchs_noise_to_the_bit(strategy, shape, printed):
    noise = draw_noise(shape, seeded(3), strategy, 0.0, printed=printed)
    assert torch.equal(noise, torch.randn(shape, generator=seeded(3)))


@pytest.mark.parametrize("printed", [False, True])
@pytest.mark.parametrize("strategy", [name for name, known in STRATEGIES.items() if known.largest_share == 1])
def test_all_shared_makes_the_frames_of_a_clip_equal_and_no_two_clips(strategy, printed):
    noise = draw_noise((40, 4, 3, 5), seeded(), strategy, 1.0, frames=20, printed=printed).unflatten(0, (2, 20))
    assert torch.equal(noise, noise[:, :1].expand_as(noise))
    assert (noise[0] - noise[1]).abs().mean() > 0.5


@pytest.mark.parametrize("strategy", CORRELATED)
def test_a_frame_depends_on_the_frames_before_it_only(strategy):
    matrix = map_of(strategy, 0.5)
    assert torch.equal(matrix, matrix.tril()) and matrix[0, 0] == 1
    assert (matrix.tril() != 0).sum() == FRAMES * (FRAMES + 1) / 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clips_in_one_batch_are_separate_draws_one_after_the_other(strategy):
    generator = seeded(1)
    clips = [draw_noise((5, 4, 2, 6), generator, strategy, 0.5) for _ in range(3)]
    batch = draw_noise((15, 4, 2, 6), seeded(1), strategy, 0.5, frames=5)
    assert torch.equal(batch, torch.cat(clips))
    longer = draw_noise((9, 4, 2, 6), seeded(1), strategy, 0.5)
    assert torch.equal(longer[:5], clips[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_latents_with_a_time_axis_are_the_same_clips_in_another_order(strategy):
    own = torch.randn(2, 4, 5, 3, 2)
    flat = correlate(rearrange(own, "b c f h w -> (b f) c h w"), strategy, 0.5, frames=5)
    noise = correlate(own, strategy, 0.5)
    assert torch.equal(noise, rearrange(flat, "(b f) c h w -> b c f h w", b=2)) and noise.is_contiguous()
    generator = seeded(1)
    clips = [draw_noise((1, 4, 5, 8, 2), generator, strategy, 0.5) for _ in range(2)]
    assert torch.equal(draw_noise((2, 4, 5, 8, 2), seeded(1), strategy, 0.5), torch.cat(clips))


@pytest.mark.parametrize("frames", [None, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_a_larger_batch_have_the_noise_that_they_have_there(strategy, frames):
    whole = draw_noise((12, 4, 2, 6), seeded(), strategy, 0.5, frames=frames)
    rows = [9, 2, 3, 2]
    part = draw_noise((4, 4, 2, 6), seeded(), strategy, 0.5, frames=frames, rows=rows)
    assert torch.equal(part, whole[rows])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clips_of_a_larger_batch_have_the_noise_that_they_have_there(strategy):
    whole = draw_noise((3, 4, 5, 2, 2), seeded(), strategy, 0.5)
    part = draw_noise((2, 4, 5, 2, 2), seeded(), strategy, 0.5, rows=[2, 0])
    assert torch.equal(part, whole[[2, 0]])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_generator_is_the_only_randomness(strategy):
    given = torch.randn(4, 4, 3, 5)
    before, state = given.clone(), torch.get_rng_state()
    noise = [draw_noise((4, 4, 3, 5), seeded(seed), strategy, 0.5) for seed in (0, 0, 1)]
    correlate(given, strategy, 0.5)
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(given, before)


def rate_of_normal_clips(strategy, share, clips=4000, frames=24):
    """Share of clips whose numbers pass the test of Jarque and Bera at 5 %, in chunks that fit into memory."""
    generator, passed = seeded(), 0
    for _ in range(clips // 200):
        noise = draw_noise((200 * frames, 4, 16, 16), generator, strategy, share, frames=frames).view(200, -1)
        z = (noise - noise.mean(1, keepdim=True)) / noise.std(1, correction=0, keepdim=True)
        skew, kurtosis = z.pow(3).mean(1), z.pow(4).mean(1)
        passed += (z.shape[1] / 6 * (skew**2 + (kurtosis - 3) ** 2 / 4) < 5.991).sum().item()
    return passed / clips


def test_the_rate_of_clips_that_look_normal_number_by_number():
    assert rate_of_normal_clips("iid", 0.0) == pytest.approx(0.95, abs=0.01)
    assert 0.62 <= rate_of_normal_clips("mixed", 1.0) <= 0.65
    assert rate_of_normal_clips("progressive", 1.0) == pytest.approx(0.80, abs=0.02)


@pytest.mark.parametrize("strategy, share", [("shared", 1.01), ("autoregressive", 2.0), ("mixed", float("inf"))])
def test_a_share_above_what_the_strategy_allows_is_refused(strategy, share):
    with pytest.raises(ValueError, match=f"The share is {share:g}; for {strategy} noise it must be"):
        draw_noise((4, 4, 3, 5), seeded(), strategy, share)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share", [-0.1, float("nan")])
def test_a_share_that_is_no_share_is_refused(strategy, share):
    with pytest.raises(ValueError, match="The share is"):
        draw_noise((4, 4, 3, 5), seeded(), strategy, share)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=f"is 'pink'; known are {', '.join(STRATEGIES)}"):
        draw_noise((4, 4, 3, 5), seeded(), "pink", 0.5)


@pytest.mark.parametrize("shape", [(4, 8), (4, 4, 8), (1, 1, 4, 4, 3, 5)])
def test_latents_of_another_rank_are_refused(shape):
    with pytest.raises(ValueError, match=f"has {len(shape)} axes"):
        draw_noise(shape, seeded())


@pytest.mark.parametrize("shape, frames", [((10, 4, 3, 5), 4), ((10, 4, 3, 5), 0), ((1, 4, 10, 3, 5), 5)])
def test_frames_that_are_no_whole_number_of_clips_are_refused(shape, frames):
    with pytest.raises(ValueError, match=f"has 10 frames, which are no whole number of clips of {frames} frames"):
        draw_noise(shape, seeded(), frames=frames)


def test_no_offset_is_the_noise_itself():
    own = torch.randn(3, 4, 5, 6)
    assert offset_noise(own, 0.0, seed=3) is own


@pytest.mark.parametrize("shape", [(6, 4, 5, 7), (2, 4, 3, 5, 7)])
def test_an_offset_is_one_number_for_each_channel_of_each_frame(shape):
    own = torch.randn(shape)
    added = offset_noise(own, 0.3, seed=3) - own
    numbers = added.mean((-1, -2), keepdim=True)
    torch.testing.assert_close(added, numbers.expand(shape), rtol=0, atol=1e-5)
    assert numbers.unique().numel() == numbers.numel()
    twice = offset_noise(own, 0.6, seed=3) - own
    torch.testing.assert_close(twice, 2 * added, rtol=0, atol=1e-5)


def test_the_offset_numbers_are_normal():
    numbers = offset_noise(torch.zeros(4000, 4, 1, 1), 0.1, seed=5)
    assert numbers.mean().abs() < 0.004 and numbers.std().item() == pytest.approx(0.1, rel=0.03)


def test_the_offset_follows_its_seed_and_not_the_length_of_the_batch():
    own = torch.zeros(8, 4, 2, 2)
    whole = offset_noise(own, 0.1, seed=2**64 - 1)
    assert torch.equal(whole, offset_noise(own, 0.1, seed=2**64 - 1))
    assert not torch.equal(whole, offset_noise(own, 0.1, seed=0))
    assert torch.equal(whole[:5], offset_noise(own[:5], 0.1, seed=2**64 - 1))
    rows = [6, 2, 2]
    assert torch.equal(whole[rows], offset_noise(own[:3], 0.1, seed=2**64 - 1, rows=rows))


@pytest.mark.parametrize("offset", [-0.1, float("inf"), float("nan")])
def test_an_offset_that_is_none_is_refused(offset):
    with pytest.raises(ValueError, match="must be 0 or more"):
        offset_noise(torch.zeros(1, 4, 2, 2), offset, seed=0)
