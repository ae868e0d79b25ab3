import pytest
import torch
from stillmotion.networks.config import InflationConfig, Queries
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.lora import Lora
from stillmotion.networks.queries import QueryMatrix
from stillmotion.networks.sites import Level, Structure
from torch import nn

SD15 = Structure(
    tuple(Level(w, (d, d), (d, d, d)) for w, d in [(320, 1), (640, 1), (1280, 1), (1280, 0)]), middle=1, context=768
)


def test_a_lora_adds_the_product_of_its_matrices_to_the_frozen_one():
    lora, frozen = Lora(12, 12, 5).double(), nn.Linear(12, 12, bias=False).double()
    nn.init.normal_(lora.up.weight)
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    merged = frozen.weight + lora.up.weight @ lora.down.weight
    torch.testing.assert_close(frozen(tokens) + lora(tokens), tokens @ merged.T)


def test_a_full_matrix_is_added_to_the_frozen_one():
    matrix, frozen = QueryMatrix(12).double(), nn.Linear(12, 12, bias=False).double()
    nn.init.normal_(matrix.diff.weight)
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(frozen(tokens) + matrix(tokens), tokens @ (frozen.weight + matrix.diff.weight).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: Lora(12, 12, 5), lambda: QueryMatrix(12)], ids=["lora", "matrix"])
def test_new_queries_add_exactly_nothing(make, dtype):
    tokens = torch.randn(2, 7, 12, dtype=dtype)
    assert torch.equal(make().to(dtype)(tokens), torch.zeros_like(tokens))


def test_a_lora_trains_from_the_start():
    """One factor is zero, not both: `up` has a gradient at step 1, `down` at step 2."""
    lora, tokens, target = Lora(12, 12, 5), torch.randn(7, 12), torch.randn(7, 12)
    optimizer = torch.optim.SGD(lora.parameters(), lr=0.1)

    def gradients():
        optimizer.zero_grad()
        (lora(tokens) - target).square().mean().backward()
        return lora.down.weight.grad.abs().max(), lora.up.weight.grad.abs().max()

    down, up = gradients()
    assert up > 0
    assert down == 0
    optimizer.step()
    assert min(gradients()) > 0


@pytest.mark.parametrize("rank", [1, 5])
def test_the_product_of_a_lora_has_its_rank(rank):
    lora = Lora(12, 12, rank)
    nn.init.normal_(lora.up.weight)
    assert torch.linalg.matrix_rank(lora(torch.eye(12))) == rank


@pytest.mark.parametrize("rank", [None, 16])
def test_parameters_on_sd15(rank):
    """Full query matrices: 12.4 million in 16 self-attentions and as many in the cross-attentions."""
    with torch.device("meta"):
        got = sum(p.numel() for p in Inflation(InflationConfig(queries=Queries(rank)), SD15).parameters())
    widths = 5 * [320] + 5 * [640] + 6 * [1280]
    assert round(sum(c * c for c in widths) / 1e6, 1) == 12.4
    assert got == 2 * sum(c * c if rank is None else 2 * rank * c for c in widths)
