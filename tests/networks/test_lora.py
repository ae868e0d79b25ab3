"""LoRAs joined and cut to a lower rank."""

import pytest
import torch
from stillmotion.networks.lora import joined, padded, truncated


def lora(rank, rows=7, columns=12):
    return torch.randn(rank, columns, dtype=torch.float64), torch.randn(rows, rank, dtype=torch.float64)


def test_joined_loras_are_their_weighted_sum_exactly_at_the_sum_of_their_ranks():
    (down_a, up_a), (down_b, up_b) = lora(3), lora(2)
    down, up = joined([(down_a, up_a, 1.0), (down_b, up_b, -0.5)])
    assert down.shape == (5, 12) and up.shape == (7, 5)
    torch.testing.assert_close(up @ down, up_a @ down_a - 0.5 * up_b @ down_b)


@pytest.mark.parametrize("rank", [1, 3, 5, 6])
def test_truncated_is_the_nearest_matrix_of_the_rank(rank):
    down, up = lora(5)
    u, values, v = torch.linalg.svd(up @ down)
    nearest = u[:, :rank] * values[:rank] @ v[:rank]
    low_down, low_up, kept = truncated(down, up, rank)
    assert low_down.shape == (rank, 12) and low_up.shape == (7, rank)
    torch.testing.assert_close(low_up.double() @ low_down.double(), nearest, rtol=1e-5, atol=1e-5)
    assert kept.item() == pytest.approx((values[:rank] ** 2).sum() / (values**2).sum())


def test_a_rank_above_the_size_of_the_matrix_and_nothing_at_all():
    down, up = lora(20)
    low_down, low_up, kept = truncated(down, up, 10)
    torch.testing.assert_close((low_up @ low_down).double(), up @ down, rtol=1e-4, atol=1e-4)
    assert low_up.shape == (7, 10) and kept == pytest.approx(1)
    *zeros, kept = truncated(torch.zeros(4, 12), torch.zeros(7, 4), 2)
    assert not any(t.any() or t.isnan().any() for t in zeros) and kept == 0


def test_padding_changes_no_product():
    down, up = lora(3)
    more_down, more_up = padded(down, up, 8)
    assert torch.equal(more_up @ more_down, up @ down) and len(more_down) == 8
