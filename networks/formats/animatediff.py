"""AnimateDiff's motion modules for SD1.5, versions 1 to 3, and AnimateLCM's, which leave their positions out."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..motion_file import MotionInfo
from .modules import Format, Take, Tensors, from_modules, tables, to_modules

TRANSFORMER = "temporal_transformer"
BLOCK = f"{TRANSFORMER}.transformer_blocks.0"

FORMAT = Format(
    "AnimateDiff",
    {
        "norm": f"{TRANSFORMER}.norm",
        "proj_in": f"{TRANSFORMER}.proj_in",
        "attentions.0.norm": f"{BLOCK}.norms.0",
        "attentions.0.qkv": f"{BLOCK}.attention_blocks.0",
        "attentions.0.out": f"{BLOCK}.attention_blocks.0.to_out.0",
        "attentions.1.norm": f"{BLOCK}.norms.1",
        "attentions.1.qkv": f"{BLOCK}.attention_blocks.1",
        "attentions.1.out": f"{BLOCK}.attention_blocks.1.to_out.0",
        "feed_forward.norm": f"{BLOCK}.ff_norm",
        "feed_forward.expand": f"{BLOCK}.ff.net.0.proj",
        "feed_forward.out": f"{BLOCK}.ff.net.2",
        "proj_out": f"{TRANSFORMER}.proj_out",
    },
    (f"{BLOCK}.attention_blocks.0.pos_encoder.pe", f"{BLOCK}.attention_blocks.1.pos_encoder.pe"),
    norm_scope="frame",
)


def is_animatediff(tensors: Tensors) -> bool:
    return any(f".{TRANSFORMER}." in name for name in tensors)


def version(info: MotionInfo) -> str:
    """Name the published module that a file is like, by its middle block and the length of its positions."""
    if info.positions is None:
        return "AnimateLCM"
    if info.config.temporal and info.config.temporal.middle:
        return "AnimateDiff v2"
    return {24: "AnimateDiff v1", 32: "AnimateDiff v3"}.get(info.positions, f"AnimateDiff for {info.positions} frames")


def remark(info: MotionInfo) -> str | None:
    """Say what makes clips with a file other than AnimateDiff's own, None where nothing does."""
    if info.options.get("format") == "AnimateDiff v1":
        return "it was trained with the image model's own norms over whole clips; here they stay those of each frame"
    return None


def from_animatediff(tensors: Tensors, take: Take | None = None) -> tuple[MotionInfo, dict[str, Tensor]]:
    """Return a file's motion modules as an inflation. Raise ValueError where they are damaged or none of SD1.5.

    AnimateLCM's were trained with positions although their files hold none: AnimateDiff-Evolved and diffusers compute
    them, and so do we. `take`: see `from_modules`.
    """
    info, found = from_modules(tensors, FORMAT, take=take)
    return replace(info, options={"format": version(info)}), found


def to_animatediff(info: MotionInfo, tensors: Tensors) -> dict[str, Tensor]:
    """Return the inverse of `from_animatediff`. Raise ValueError where there is more than temporal blocks."""
    modules = to_modules(info, tensors, FORMAT)
    return modules | (tables(info, tensors, FORMAT) if info.positions else {})
