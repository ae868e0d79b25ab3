"""What the training of the toy's two networks shares: weights that a seed names, and the fast number type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


@contextmanager
def seeded_by(generator: Generator) -> Iterator[None]:
    """Let torch's global randomness depend on the generator alone, and make it what it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.randint(2**62, (), generator=generator).item())
        yield


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the machine computes with it; other processors only imitate it, slower than
    float32."""
    processor_has_it = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or processor_has_it())
