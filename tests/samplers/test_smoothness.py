"""How evenly frames follow on one another, against formulas and clips of which it is known."""

import math

import pytest
import torch
from stillmotion.samplers.smoothness import flicker, frame_difference_curve, jitter, jumps, loop_seam, order, seam


def test_one_frame_has_no_curve():
    assert frame_difference_curve(torch.rand(1, 3, 5, 3)).shape == (0,)


def test_the_curve_is_the_formula_number_by_number():
    frames = torch.rand(4, 3, 5, 3, dtype=torch.float64)
    for f, got in enumerate(frame_difference_curve(frames).tolist()):
        pairs = list(zip(frames[f].flatten().tolist(), frames[f + 1].flatten().tolist()))
        assert got == pytest.approx(sum((b - a) ** 2 for a, b in pairs) / len(pairs), rel=1e-5)


def test_the_curve_of_a_linear_ramp_is_constant():
    start, slope = torch.rand(2, 3, 5, 3)
    frames = start + torch.arange(6.0)[:, None, None, None] * slope
    curve = frame_difference_curve(frames)
    torch.testing.assert_close(curve, slope.square().mean().expand(5))
    assert seam(curve) == pytest.approx(1, rel=1e-5)


def test_a_seam_stands_out_of_the_curve():
    frames = torch.arange(9.0)[:, None].expand(9, 4).clone()
    frames[5:] += 2
    assert frame_difference_curve(frames).tolist() == [1, 1, 1, 1, 9, 1, 1, 1]
    assert seam(frame_difference_curve(frames)) == 9


def test_the_curve_of_8_bit_frames_does_not_wrap_around():
    frames = torch.tensor([[250], [5]], dtype=torch.uint8)
    assert frame_difference_curve(frames).tolist() == [245**2]


def test_jumps_are_where_a_step_stands_out_of_its_neighbours_and_nothing_else():
    assert jumps(torch.tensor([1.0, 1, 9, 1, 1])) == [2] and jumps(torch.tensor([9.0, 1, 1, 1, 9])) == [0, 4]
    assert jumps(torch.tensor([1.0, 1, 2, 5, 12, 20, 12, 5, 2, 1, 1])) == [], "it comes to move more"
    assert (
        jumps(torch.tensor([1.0, 1, 1, 9, 9, 1])) == [] and jumps(torch.zeros(4)) == [] and jumps(torch.zeros(0)) == []
    )


def test_a_clip_that_comes_back_has_no_seam_when_it_is_looped():
    phase = torch.arange(16.0) / 16 * math.tau
    circle = torch.stack([phase.cos(), phase.sin()], dim=1)
    assert loop_seam(circle[0], circle[-1], frame_difference_curve(circle)) == pytest.approx(1, rel=1e-4)
    line = torch.arange(16.0)[:, None]
    assert loop_seam(line[0], line[-1], frame_difference_curve(line)) == 15**2


def test_jitter_is_nought_for_a_ramp_root_3_for_chance_and_2_for_alternation():
    assert jitter(torch.arange(9.0)[:, None] * torch.rand(5)) == pytest.approx(0, abs=1e-5)
    assert jitter(torch.randn(400, 500)) == pytest.approx(3**0.5, rel=0.01)
    assert jitter(torch.tensor([0.0, 1] * 8)[:, None]) == 2
    assert math.isnan(jitter(torch.ones(5, 3))) and math.isnan(jitter(torch.rand(2, 3)))


def test_the_order_is_16_for_a_ramp_4_for_a_random_walk_and_1_for_chance():
    generator = torch.Generator().manual_seed(0)
    chance = torch.randn(200, 500, generator=generator)
    assert order(torch.arange(20.0)[:, None]) == 16
    assert order(chance.cumsum(0)) == pytest.approx(4, rel=0.05) and order(chance) == pytest.approx(1, rel=0.05)
    walk = chance.cumsum(0)
    assert order(walk[torch.randperm(200, generator=generator)]) < 1.2
    assert order(torch.tensor([0.0, 1] * 8)[:, None]) == 0
    assert math.isnan(order(torch.ones(16, 2))) and math.isnan(order(walk[:11])) and order(walk[:12]) > 2


def test_flicker_is_by_how_much_every_second_frame_is_brighter():
    alternating = torch.tensor([0.0, 12.0] * 8)
    assert flicker(alternating) == 12 and flicker(alternating + torch.arange(16.0)) == 12
    assert flicker(torch.arange(16.0)) == 0 and flicker(torch.rand(2)) == 0


def test_a_cut_does_not_count_as_flicker():
    assert flicker(torch.tensor([10.0] * 8 + [200.0] * 8)) == 0
