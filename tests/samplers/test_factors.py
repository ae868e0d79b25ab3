from itertools import product

import pytest
import torch
from stillmotion.samplers.factors import (
    appearance_factor,
    appearance_similarity,
    latent_features,
    mean_frame_difference,
    motion_factors,
    resampled_curve,
    resampled_similarity,
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


def test_the_mean_frame_difference_of_a_ramp():
    assert mean_frame_difference(torch.arange(4.0)[:, None].expand(4, 7) * 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("position, line", [(0, 0), (0.5, 3), (0.6, 4), (1, 6)])
def test_a_slice_holds_one_row_or_one_column_of_every_frame(position, line):
    frames = torch.randint(0, 255, (5, 7, 9, 3), dtype=torch.uint8)
    rows = torch.stack([frame[line] for frame in frames])
    assert torch.equal(x_t_slice(frames, position), rows)
    turned = frames.transpose(1, 2)  # columns of these are the rows of the others
    assert torch.equal(y_t_slice(turned, position), rows.transpose(0, 1))


def test_similarities_are_cosines_number_by_number():
    features = torch.randn(2, 3, 5, dtype=torch.float64)
    got = appearance_similarity(features)
    assert got.shape == (2, 3, 3)
    for clip, i, j in product(range(2), range(3), range(3)):
        pair = features[clip, i], features[clip, j]
        assert got[clip, i, j].item() == pytest.approx(torch.cosine_similarity(*pair, dim=0).item(), abs=1e-6)


def test_a_still_clip_has_an_appearance_factor_of_nought():
    similarity = appearance_similarity(torch.randn(7).expand(5, 7))
    torch.testing.assert_close(similarity, torch.ones(5, 5), rtol=0, atol=1e-6)
    assert abs(appearance_factor(similarity).item()) < 1e-5


def test_the_appearance_factor_is_of_the_first_and_the_last_frame():
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
    similarity = appearance_similarity(features)
    assert [round(appearance_factor(similarity[:n, :n]).item(), 6) for n in (1, 2, 3, 4)] == [0, 0.4, 1, 2]


def test_frames_without_features_are_like_each_other_alone():
    got = appearance_similarity(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert got.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("height, width", [(32, 56), (64, 64), (5, 3), (1, 1)])
def test_latent_features_do_not_depend_on_the_size_of_a_frame(height, width):
    look = torch.randn(2, 3, 4)
    got = latent_features(look[..., None, None].expand(2, 3, 4, height, width))
    torch.testing.assert_close(got, look.repeat_interleave(16, dim=-1))


def test_latent_features_are_means_over_cells():
    latents = torch.randn(3, 4, 8, 12).half()
    got = latent_features(latents)
    assert got.dtype == torch.float32
    means = latents.float().unflatten(-1, (4, 3)).unflatten(-3, (4, 2)).mean((-1, -3))
    torch.testing.assert_close(got, means.flatten(1))


def test_a_curve_of_another_length_keeps_its_ends():
    curve = torch.tensor([[0.0, 2.0, 4.0], [4.0, 0.0, 4.0]])
    assert resampled_curve(curve, 5).tolist() == [[0, 1, 2, 3, 4], [4, 2, 0, 2, 4]]
    assert resampled_curve(curve, 2).tolist() == [[0, 4], [4, 4]]
    assert resampled_curve(curve[:, :1], 3).tolist() == [[0, 0, 0], [4, 4, 4]]


def test_similarities_of_another_length_keep_their_ends_and_their_diagonal():
    similarity = appearance_similarity(torch.randn(6, 9))
    assert torch.equal(resampled_similarity(similarity, 6), similarity)
    for frames in (1, 2, 4, 11):
        got = resampled_similarity(similarity, frames)
        assert got.shape == (frames, frames) and torch.equal(got.diagonal(), torch.ones(frames))
        torch.testing.assert_close(got, got.mT)
        if frames > 1:
            torch.testing.assert_close(appearance_factor(got), appearance_factor(similarity))


def test_an_even_change_stays_even_with_half_and_with_twice_as_many_frames():
    def even(frames):
        return 1 - 0.6 * (torch.arange(frames)[:, None] - torch.arange(frames)).abs() / (frames - 1)

    torch.testing.assert_close(resampled_similarity(even(9), 5), even(5))
    torch.testing.assert_close(resampled_similarity(even(9), 17), even(17))
