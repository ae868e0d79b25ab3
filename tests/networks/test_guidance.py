"""HiGen's guidance against its formulas."""

import math

import pytest
import torch
from stillmotion.networks.asked import Asked, Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import Appearance, InflationConfig, Motion
from stillmotion.networks.guidance import (
    AppearanceEmbedding,
    MotionEmbedding,
    even_positions,
    for_each_frame,
    resampled_columns,
    similarity_of,
    sinusoid,
)
from stillmotion.networks.inflation import Attached, Inflation, embedded
from stillmotion.networks.sites import Level, Structure

SLIM = Structure((Level(32, (1,), (1, 1)), Level(64, (0,), (0, 0))), middle=1, context=768)


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.requires_grad_(False)


def motion_of(order="mlp_then_interp", absent="nothing"):
    return randomised(MotionEmbedding(32, 48, order, absent))


def rows_of(module, value, frames, indices=None, weight=None):
    given = None if value is None else Given(value, weight)
    return module(given, frames, indices or range(frames), torch.zeros(1))


def test_the_sinusoid_is_that_of_timesteps():
    i = torch.arange(160)
    angles = 500 * 10000.0 ** (-i / 160)
    expected = torch.cat([angles.cos(), angles.sin()])
    torch.testing.assert_close(sinusoid(torch.tensor([500.0]), 320)[0], expected, rtol=0, atol=1e-4)
    from diffusers.models.embeddings import get_timestep_embedding

    theirs = get_timestep_embedding(torch.tensor([0, 300, 4000]), 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoid(torch.tensor([0, 300, 4000]), 320), theirs, rtol=0, atol=3e-4)


def test_transitions_become_frames_by_the_half_pixel_rule():
    matrix = for_each_frame(torch.eye(31)[None], 32)[0]
    assert matrix.shape == (32, 31)
    torch.testing.assert_close(matrix.sum(1), torch.ones(32))
    assert matrix[0].tolist() == [1.0] + [0.0] * 30
    torch.testing.assert_close(matrix[1, :2], torch.tensor([0.046875, 0.953125]))
    assert matrix[31, 30] == 1


def test_constant_motion_is_the_same_in_both_orders_and_in_all_frames():
    late, early = motion_of(), motion_of("sin_then_interp")
    early.load_state_dict(late.state_dict())
    constant, ramp = torch.full((1, 7), 450.0), torch.linspace(300, 600, 7)[None]
    rows = rows_of(late, constant, 8)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(rows, rows_of(early, constant, 8), rtol=1e-5, atol=1e-5)
    assert (rows_of(late, ramp, 8) - rows_of(early, ramp, 8)).abs().max() > 1e-2


def test_numbers_of_frames_are_not_interpolated():
    module, factors = motion_of(), torch.tensor([[100.0, 200.0, 300.0, 400.0]])
    alone = [rows_of(module, factors[:, [k]].expand(1, 4), 4)[0, 0] for k in range(4)]
    torch.testing.assert_close(rows_of(module, factors, 4)[0], torch.stack(alone))


def test_factors_are_rounded_and_limited():
    module = motion_of()
    for given, taken in ((450.4, 450.0), (9e9, 4000.0), (-3.0, 0.0)):
        assert torch.equal(*(rows_of(module, torch.full((1, 4), n), 4) for n in (given, taken)))


def test_eq_4_is_even_positions():
    for factor in (0.0, 0.4, 1.0):
        r = similarity_of(even_positions(torch.tensor(factor), 16))
        i = torch.arange(16)
        torch.testing.assert_close(r, 1 - factor * (i[:, None] - i[None]).abs() / 15)
        assert math.isclose(1 - r[0, -1], factor, abs_tol=1e-6) and (r.diagonal() == 1).all()


def test_columns_are_resampled_exactly_where_the_matrix_is_even():
    r = similarity_of(even_positions(torch.tensor([0.7]), 16))
    columns = even_positions(torch.tensor(0.7), 32)
    expected = 1 - (even_positions(torch.tensor(0.7), 16)[:, None] - columns[None]).abs()
    kinks = (resampled_columns(r, 32)[0] - expected).abs()
    assert kinks.max() < 0.7 / 31 and kinks[[0, -1]].max() < 1e-6
    torch.testing.assert_close(resampled_columns(torch.ones(1, 1, 1), 32), torch.ones(1, 1, 32))


@pytest.mark.parametrize("kind", ["motion", "appearance"])
def test_a_new_embedding_adds_nothing_and_moves_from_the_first_step(kind):
    module = (
        MotionEmbedding(32, 48, "mlp_then_interp", "nothing")
        if kind == "motion"
        else AppearanceEmbedding(8, 48, "nothing")
    )
    value = torch.full((2, 7), 300.0) if kind == "motion" else torch.rand(2, 8, 8)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for step in range(2):
        rows = rows_of(module, value, 8)
        assert bool(rows.any()) == (step > 0)
        (rows - 1).square().sum().backward()
        optimizer.step()
    assert all(p.grad.any() for p in module.parameters())


def test_the_appearance_of_a_window_is_its_own_part_of_the_matrix():
    module, r = randomised(AppearanceEmbedding(6, 48, "nothing")), torch.rand(2, 12, 12)
    window = [3, 4, 5, 6]
    own = rows_of(module, r[:, 3:7, 3:7], 4)
    assert torch.equal(rows_of(module, r, 12, window), own)
    assert own.shape == (2, 4, 48)


def test_the_motion_of_a_window_is_its_frames_rows():
    module, factors = motion_of(), torch.rand(1, 11) * 1000
    whole = rows_of(module, factors, 12)
    assert torch.equal(rows_of(module, factors, 12, [3, 4, 9]), whole[:, [3, 4, 9]])


@pytest.mark.parametrize("part, value", [("motion", torch.rand(2, 3) * 900), ("appearance", torch.rand(2, 4, 4))])
def test_a_clip_that_goes_without_gets_nothing_or_zero(part, value):
    def build(absent):
        return motion_of(absent=absent) if part == "motion" else randomised(AppearanceEmbedding(6, 48, absent))

    ours, release = build("nothing"), build("zero")
    first = torch.tensor([1.0, 0.0])
    assert rows_of(ours, None, 4) is None and rows_of(ours, value, 1) is None
    assert not rows_of(ours, value, 4, weight=first)[1].any()
    zero = torch.zeros(1, 4) if part == "motion" else torch.ones(1, 4, 4)
    torch.testing.assert_close(rows_of(release, None, 4), rows_of(release, zero, 4))
    torch.testing.assert_close(rows_of(release, value, 4, weight=first)[1:], rows_of(release, zero, 4))
    assert rows_of(release, None, 1).any(), "a single frame too is told that nothing moves"


@pytest.mark.parametrize(
    "module, value, said",
    [
        (motion_of(), torch.zeros(1, 5), "5 motion factors for 8 frames; give 7 or 8"),
        (AppearanceEmbedding(6, 48, "nothing"), torch.zeros(1, 5, 8), "5 x 8 numbers; 8 frames need 8 x 8"),
    ],
)
def test_another_number_of_frames_is_refused(module, value, said):
    with pytest.raises(ValueError, match=said):
        rows_of(module, value, 8)


def test_rows_are_added_by_strength_and_by_keyframes():
    inflation = randomised(Inflation(InflationConfig(motion=Motion(), appearance=Appearance(4)), SLIM))
    asked = Asked(motion=Given(torch.rand(1, 3) * 900), similarity=Given(torch.rand(1, 4, 4)))
    emb, clip = torch.randn(2 * 4, 128), Clip.of(4)
    whole = embedded(emb, [Attached(inflation, asked=asked)], clip) - emb
    half = embedded(emb, [Attached(inflation, temporal=0.5, asked=asked)], clip) - emb
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-4)
    fading = embedded(emb, [Attached(inflation, asked=asked, keyframes=((0, 0.0), (3, 1.0)))], clip) - emb
    torch.testing.assert_close(fading, whole * torch.linspace(0, 1, 4).repeat(2)[:, None], rtol=1e-4, atol=1e-4)
    assert torch.equal(embedded(emb, [Attached(inflation, temporal=0.0, asked=asked)], clip), emb)
    assert torch.equal(embedded(emb, [Attached(inflation)], clip), emb)


def test_one_clip_is_told_nothing_of_the_other():
    inflation = randomised(Inflation(InflationConfig(motion=Motion(), appearance=Appearance(4)), SLIM))
    emb, clip = torch.randn(8, 128), Clip.of(4)
    motion, r = torch.rand(2, 3) * 900, torch.rand(2, 4, 4)

    def run(motion, r):
        return embedded(emb, [Attached(inflation, asked=Asked(motion=Given(motion), similarity=Given(r)))], clip)

    before = run(motion, r)
    motion[1] += 100
    r[1] /= 2
    after = run(motion, r)
    assert torch.equal(before[:4], after[:4]) and not torch.equal(before[4:], after[4:])
