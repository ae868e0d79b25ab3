from itertools import product

import pytest
import torch
from stillmotion.samplers.factors import (
    frame_difference_curve,
    mean_frame_difference,
    motion_factors,
    seam,
    x_t_slice,
    y_t_slice,
)


@pytest.mark.parametrize("norm, power", [("l1", 1), ("l2sq", 2)])
def test_motion_factors_are_the_formula_number_by_number(norm, power):
    latents = torch.randn(2, 5, 4, 3, 7, dtype=torch.float64)
    got = motion_factors(latents, norm)
    assert got.shape == (2, 4)
    for clip, f in product(range(2), range(4)):
        numbers = zip(latents[clip, f].flatten().tolist(), latents[clip, f + 1].flatten().tolist())
        total = sum(abs(a - b) ** power for a, b in numbers)
        assert got[clip, f].item() == pytest.approx(7168 * total / (4 * 3 * 7), rel=1e-5)


def test_at_448_by_256_pixels_they_are_the_l1_norm():
    latents = torch.randn(3, 4, 32, 56)
    norms = [torch.linalg.vector_norm(a - b, ord=1) for a, b in zip(latents, latents[1:])]
    torch.testing.assert_close(motion_factors(latents), torch.stack(norms))


@pytest.mark.parametrize("width, height", [(448, 256), (512, 512), (64, 40)])
def test_motion_factors_do_not_depend_on_the_size(width, height):
    levels = torch.tensor([0.0, 0.07, 0.07, -0.03])
    latents = levels[:, None, None, None].expand(4, 4, height // 8, width // 8)
    torch.testing.assert_close(motion_factors(latents), 7168 * torch.tensor([0.07, 0, 0.1]))
    assert motion_factors(latents).round()[0] == 502


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_motion_factors_of_half_precision_latents_are_summed_in_float32(dtype):
    latents = torch.randn(4, 4, 64, 64).to(dtype)
    torch.testing.assert_close(motion_factors(latents), motion_factors(latents.double()), rtol=1e-5, atol=0)


def test_one_frame_has_no_motion_factor():
    assert motion_factors(torch.randn(1, 4, 3, 5)).shape == (0,)
    assert frame_difference_curve(torch.rand(1, 3, 5, 3)).shape == (0,)


def test_the_mean_frame_difference_of_a_ramp():
    assert mean_frame_difference(torch.arange(4.0)[:, None].expand(4, 7) * 0.5) == pytest.approx(0.5)


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


@pytest.mark.parametrize("position, line", [(0, 0), (0.5, 3), (0.6, 4), (1, 6)])
def test_a_slice_holds_one_row_or_one_column_of_every_frame(position, line):
    frames = torch.randint(0, 255, (5, 7, 9, 3), dtype=torch.uint8)
    rows = torch.stack([frame[line] for frame in frames])
    assert torch.equal(x_t_slice(frames, position), rows)
    turned = frames.transpose(1, 2)  # columns of these are the rows of the others
    assert torch.equal(y_t_slice(turned, position), rows.transpose(0, 1))
