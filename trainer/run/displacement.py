"""How far training took each part of an inflation, and what it left standing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

from ...networks.inflation import Inflation
from .optimiser import GAMMA_FACTOR, is_gate

log = logging.getLogger("stillmotion")

STANDING = 1 / 20
"""A tensor that was moved by less than this share of what the median part was moved by has hardly learnt."""

NAMED = 8


def movements(tensors: Mapping[str, Tensor], start: Inflation, path: float) -> dict[str, float]:
    """Return the RMS of each tensor's change, as a share of the way that AdamW could have taken it.

    AdamW moves every weight by up to its learning rate a step, whatever the scale of its gradient. So this measure is
    the same for tensors that start at zero and for those that do not; one that stands still has hardly any gradient.
    Single numbers, the gates, are judged together with their like at all sites: one of them may go out and come back.

    Args:
        tensors: the inflation's after training.
        start: the inflation before its first step.
        path: sum of the learning rates of all steps, see `Schedule.path`.
    """
    before = start.state_dict()
    changes = {name: tensors[name].cpu().float() - tensor.float() for name, tensor in before.items()}
    for alike in gates_alike(before).values():
        changes |= dict.fromkeys(alike, torch.stack([changes[name] for name in alike]))
    return {name: rms(changes[name]) / (path * (GAMMA_FACTOR if is_gate(name) else 1.0)) for name in before}


def gates_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Group gates by what they are gates of, at whatever site."""
    kinds: dict[str, list[str]] = {}
    for name in filter(is_gate, names):
        kinds.setdefault(gate_kind(name), []).append(name)
    return kinds


def gate_kind(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def standing(moved: Mapping[str, float], start: Inflation) -> list[str]:
    """Name the tensors that moved by no more than a twentieth of the median part."""
    limit = STANDING * median(by_part(moved, start).values())
    return [name for name, share in moved.items() if share <= limit]


def by_part(moved: Mapping[str, float], start: Inflation) -> dict[str, float]:
    """Return the mean movement of the tensors of each part: attention, resampling, tokens …."""
    shares: dict[str, list[float]] = {}
    for path, module in start.parts():
        shares.setdefault(path.rpartition(".")[2], []).extend(moved[f"{path}.{name}"] for name in module.state_dict())
    return {part: sum(values) / len(values) for part, values in shares.items()}


def delta_rms(tensors: Mapping[str, Tensor], start: Inflation) -> dict[str, float]:
    """Return how far each module `<site>.<part>` is from its start: root mean square over its numbers."""
    return {path: rms(deltas(path, tensors, module)) for path, module in start.parts()}


def deltas(path: str, tensors: Mapping[str, Tensor], module: torch.nn.Module) -> Tensor:
    before = module.state_dict()
    return torch.cat([(tensors[f"{path}.{name}"].cpu() - before[name]).float().flatten() for name in before])


def report(tensors: Mapping[str, Tensor], start: Inflation, path: float) -> dict[str, dict[str, float]]:
    """Log how far modules and parts went, warn of tensors that stand, and return what was logged."""
    modules, moved = delta_rms(tensors, start), movements(tensors, start, path)
    parts = by_part(moved, start)
    for name, delta in modules.items():
        log.info("  %.2e  %s", delta, name)
    for part, share in parts.items():
        log.info("  %s: %.1f %% of the way that AdamW could have taken it", part, 100 * share)
    if still := standing(moved, start):
        log.warning(
            "%d of %d tensors moved less than a twentieth of the median part, and have hardly learnt: %s%s. More"
            " --steps, or another loss that reaches them, is needed.",
            *(len(still), len(moved), ", ".join(still[:NAMED]), " …" if still[NAMED:] else ""),
        )
    return {"delta_rms": modules, "moved": parts}
