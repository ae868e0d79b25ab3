"""Motion files of format 1 in the terms of format 2. What lies on the disk stays as it is.

Format 2 calls two parts by other names, and holds the weight g of frame-wise tokens as θ = log g, where format 1 held
gamma with g = gamma².
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PARTS = {"memory": "recurrence", "frames": "frame_attention"}
"""Former names of parts."""

GATE = ".tokens.gamma"


def upgraded_description(own: dict) -> dict:
    config = own.get("config")
    if isinstance(config, dict):
        own = {**own, "config": {PARTS.get(part, part): options for part, options in config.items()}}
    return own


def upgraded_name(name: str) -> str:
    for old, new in PARTS.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name.removesuffix(".gamma") + ".theta" if name.endswith(GATE) else name


def upgraded_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {upgraded_name(name): theta(t) if name.endswith(GATE) else t for name, t in tensors.items()}


def theta(gamma: Tensor) -> Tensor:
    """Return log gamma² in float32, finite where gamma is 0; in a file's half precision it would be another weight."""
    return 2 * gamma.float().abs().clamp(min=torch.finfo(torch.float32).tiny).log()
