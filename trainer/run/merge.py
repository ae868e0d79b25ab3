"""Motions that were learnt as LoRAs, several in one file, and their ranks cut."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...networks.config import InflationConfig, Queries, TemporalLora
from ...networks.inflation import MERGED, Inflation, without_merged
from ...networks.lora import joined, padded, truncated
from ...networks.motion_file import MotionInfo

log = logging.getLogger("stillmotion")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Weighted:
    """A motion file that is merged with others, and the factor of its LoRAs."""

    path: Path
    info: MotionInfo
    tensors: Tensors
    weight: float


def merged_motions(files: Sequence[Weighted]) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return one motion whose LoRAs are the weighted sum of those of all files, exactly: their ranks add up.

    What is no LoRA cannot be added up: that of the first file is kept, and the log says what of others is left out.

    Raises:
        ValueError: they are for other U-Nets, or on other attentions, or hold no LoRA.
    """
    first, *others = files
    for file in files:
        _check(first, file)
    for file in others:
        _warn(first.info, file)
    configs = [file.info.config for file in files]
    info = replace(first.info, config=replace(first.info.config, **_parts_of_sum(configs)))
    rest = {name: tensor for name, tensor in first.tensors.items() if not _in_lora(name)}
    return info, rest | _sums(files, info)


def at_rank(info: MotionInfo, tensors: Tensors, rank: int) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return a motion with the nearest LoRAs of at most a rank, and say how much of their change is kept.

    Raises:
        ValueError: it has none.
    """
    _check_loras(info)
    loras = {part: lora for part in MERGED if (lora := getattr(info.config, part))}
    parts = {part: replace(lora, rank=min(rank, lora.rank)) for part, lora in loras.items()}
    found, kept = dict(tensors), []
    for name in _loras_in(tensors):
        down, up = (tensors[f"{name}.{side}.weight"] for side in ("down", "up"))
        if len(down) <= rank:
            continue
        low_down, low_up, share = truncated(down, up, rank)
        found |= {f"{name}.down.weight": low_down.to(down.dtype), f"{name}.up.weight": low_up.to(up.dtype)}
        kept += [100 * share.item()] if up.any() else []
    if kept:
        log.info(
            "At rank %d its LoRAs keep %.1f %% of their squared change in the mean, the one that loses most %.1f %%.",
            *(rank, sum(kept) / len(kept), min(kept)),
        )
    return replace(info, config=replace(info.config, **parts)), found


def _sums(files: Sequence[Weighted], info: MotionInfo) -> dict[str, Tensor]:
    loras = InflationConfig(**{part: getattr(info.config, part) for part in MERGED})
    with torch.device("meta"):
        wanted = Inflation(loras, info.structure).state_dict()
    found = {}
    for name in _loras_in(wanted):
        sides = f"{name}.down.weight", f"{name}.up.weight"
        pairs = [(*(file.tensors[side] for side in sides), file.weight) for file in files if sides[0] in file.tensors]
        found |= zip(sides, padded(*joined(pairs), len(wanted[sides[0]])))
    return found


def _parts_of_sum(configs: Iterable[InflationConfig]) -> dict[str, Queries | TemporalLora | None]:
    queries = [config.queries.rank or 0 for config in configs if config.queries]
    loras = [config.temporal_lora for config in configs if config.temporal_lora]
    if loras:
        everywhere = {name: any(getattr(lora, name) for lora in loras) for name in ("middle", "frame_attention")}
        loras[:] = [replace(loras[0], rank=sum(lora.rank for lora in loras), **everywhere)]
    return {"queries": Queries(sum(queries)) if queries else None, "temporal_lora": loras[0] if loras else None}


def _in_lora(name: str) -> bool:
    return any(f".{part}." in name for part in MERGED)


def _loras_in(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(".up.weight") for name in names if _in_lora(name) and name.endswith(".up.weight")]


def _check(first: Weighted, file: Weighted) -> None:
    a, b = first.info.config.temporal_lora, file.info.config.temporal_lora
    try:
        _check_loras(file.info)
        if first.info.structure != file.info.structure:
            raise ValueError(f"it is for another U-Net than {first.path}")
        if a and b and (a.levels, a.layers) != (b.levels, b.layers):
            raise ValueError(f"it changes attentions of other blocks than {first.path}")
    except ValueError as error:
        raise ValueError(f"{file.path} cannot be merged: {error}") from None


def _check_loras(info: MotionInfo) -> None:
    queries = info.config.queries
    if queries and queries.rank is None:
        raise ValueError("its queries are full matrices, which have no rank: train with --queries lora")
    if not queries and not info.config.temporal_lora:
        raise ValueError("it holds no LoRA, as fewshot trains them")


def _warn(first: MotionInfo, file: Weighted) -> None:
    if left_out := without_merged(file.info.config).to_json():
        log.warning(
            "%s: %s cannot be added up and is left out; a second node in ComfyUI has both.",
            *(file.path, ", ".join(left_out)),
        )
    if first.over and file.info.over and first.over.sha256 != file.info.over.sha256:
        log.warning(
            "%s was learnt on top of %s, and the first file on top of %s: the sum fits neither exactly.",
            *(file.path, file.info.over.name, first.over.name),
        )
