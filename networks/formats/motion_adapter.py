"""diffusers' `MotionAdapter`: a folder of configuration and tensors, whose GroupNorm sees all frames of a clip."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..motion_file import MotionInfo
from .modules import Format, Take, Tensors, from_modules, length_of, tables, to_modules

BLOCK = "transformer_blocks.0"

FORMAT = Format(
    "MotionAdapter",
    {
        "norm": "norm",
        "proj_in": "proj_in",
        "attentions.0.norm": f"{BLOCK}.norm1",
        "attentions.0.qkv": f"{BLOCK}.attn1",
        "attentions.0.out": f"{BLOCK}.attn1.to_out.0",
        "attentions.1.norm": f"{BLOCK}.norm2",
        "attentions.1.qkv": f"{BLOCK}.attn2",
        "attentions.1.out": f"{BLOCK}.attn2.to_out.0",
        "feed_forward.norm": f"{BLOCK}.norm3",
        "feed_forward.expand": f"{BLOCK}.ff.net.0.proj",
        "feed_forward.out": f"{BLOCK}.ff.net.2",
        "proj_out": "proj_out",
    },
    (f"{BLOCK}.pos_embed.pe",),
    norm_scope="clip",
)


def from_motion_adapter(
    tensors: Tensors, config: dict | None = None, take: Take | None = None
) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return an adapter as an inflation.

    Args:
        config: of its folder; where there is none, the number of heads is diffusers' default.
        take: see `from_modules`.

    Raises:
        ValueError: the tensors are damaged, or the configuration is of another adapter or one that is not known.
    """
    config = config or {}
    heads = config.get("motion_num_attention_heads", 8)
    heads = heads[0] if isinstance(heads, list) and heads else heads
    info, found = from_modules(tensors, FORMAT, heads, take)
    info = replace(
        info, positions=info.positions or config.get("motion_max_seq_length"), options={"format": FORMAT.name}
    )
    _check_config(config, to_config(info), len(info.structure.levels))
    return info, found


def to_motion_adapter(info: MotionInfo, tensors: Tensors) -> tuple[dict, dict[str, Tensor]]:
    """Return configuration and tensors of an adapter. Raise ValueError where there is more than temporal blocks."""
    modules = to_modules(info, tensors, FORMAT)
    return to_config(info), modules | tables(info, tensors, FORMAT)


def to_config(info: MotionInfo) -> dict:
    """Return what diffusers builds an adapter from."""
    levels, temporal = info.structure.levels, info.config.temporal
    units = [len(level.down) for level in levels]
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": [level.width for level in levels],
        "conv_in_channels": None,
        "motion_layers_per_block": units[0] if len(set(units)) == 1 else units,
        "motion_max_seq_length": length_of(info),
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 32,
        "motion_num_attention_heads": temporal.heads,
        "use_motion_mid_block": temporal.middle,
    }


def _check_config(given: dict, expected: dict, levels: int) -> None:
    def at_each_level(value: object) -> list:
        return list(value) if isinstance(value, list | tuple) else [value] * levels

    for name in sorted(given.keys() & expected.keys()):
        if at_each_level(given[name]) != at_each_level(expected[name]):
            raise ValueError(f"its config.json has {name} {given[name]!r}; its tensors make it {expected[name]!r}")
