"""AdamW, its learning-rate schedule, and the EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

GAMMA_FACTOR = 10.0
"""The mixing gates start at zero and hold back the gradients of all behind them; they may move faster than the rest."""

WEIGHT_DECAY = 1e-2

EPS = 1e-15
"""AdamW's own 1e-8 is as large as the gradients of frame-wise tokens (1e-10) and of the recurrence (7e-10 and more)
that it is added to: these parts would stand still."""

EIGHT_BIT_EPS = 1e-8
"""For moments in 8 bits, bitsandbytes' own. Its CUDA kernel (`kOptimizerStatic8bit2StateBlockwise`) rounds the small
second moments of a block of 256 to 0, but no negative first moment: eps alone holds their ratio. With 1e-15 a gradient
that is 0 now and then, as in fp16, or far below others of its block makes steps of thousands of learning rates."""

FAINT = {"tokens", "recurrence"}
"""Parts that need the small eps: their moments stay in 32 bits."""

SMALLEST_IN_EIGHT_BITS = 4096
"""Numbers of a tensor; bitsandbytes leaves smaller ones in 32 bits."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then linear decay to `final`, which the step after the last one would have.

    `warm_up` is cut to half of a short run.
    """

    steps: int
    learning_rate: float
    warm_up: int = 100
    final: float = 0.0

    def at(self, step: int) -> float:
        """Return the learning rate of step 1, 2, … `steps`."""
        top = max(1, min(self.warm_up, self.steps // 2))
        if step <= top:
            return self.learning_rate * step / top
        left = (self.steps - step + 1) / (self.steps - top + 1)
        return self.final + (self.learning_rate - self.final) * left

    def path(self, steps: int) -> float:
        """Return the sum of the learning rates of the first steps: how far AdamW takes a weight at most."""
        return sum(map(self.at, range(1, steps + 1)))


def make_optimizer(
    model: nn.Module,
    eight_bit: bool = False,
    spatial: Collection[nn.Parameter] = (),
    spatial_rate: float = 1.0,
) -> Optimizer:
    """Make AdamW with (0.9, 0.999), weight decay 0.01 and EPS; `set_learning_rate` gives it its rate at every step.

    Args:
        eight_bit: moments in 8 bits where `in_eight_bits` allows it, with EIGHT_BIT_EPS.
        spatial: weights of the image model: with `spatial_rate` times the learning rate, and no weight decay, which
            would take away what it knows.

    Raises:
        ValueError: `eight_bit` was asked for and bitsandbytes is not installed.
    """
    kind = eight_bit_adamw() if eight_bit else AdamW
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    of_image_model = set(map(id, spatial))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_spatial = id(parameter) in of_image_model
            key = is_spatial, not is_spatial and is_gate(name), eight_bit and in_eight_bits(name, parameter)
            groups.setdefault(key, []).append(parameter)
    described = [
        {
            "params": parameters,
            "factor": spatial_rate if is_spatial else GAMMA_FACTOR if gates else 1.0,
            "weight_decay": 0.0 if is_spatial else WEIGHT_DECAY,
            "bits": 8 if coarse else 32,
            "eps": EIGHT_BIT_EPS if coarse else EPS,
        }
        for (is_spatial, gates, coarse), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return kind(described, lr=0.0, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY)


def is_gate(name: str) -> bool:
    return name.rpartition(".")[2] in ("gamma", "theta")


def in_eight_bits(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether 8-bit AdamW keeps the moments of a parameter in 8 bits."""
    return parameter.numel() >= SMALLEST_IN_EIGHT_BITS and FAINT.isdisjoint(name.split("."))


def eight_bit_adamw() -> type[Optimizer]:
    """Return bitsandbytes' AdamW, whose moments have as many bits as their group says."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(
            "--eight-bit needs bitsandbytes: pip install bitsandbytes, or leave --eight-bit out."
        ) from None

    class MixedAdamW(AdamW8bit):
        def get_config(self, gindex, pindex, group):
            return super().get_config(gindex, pindex, group) | {"optim_bits": group["bits"]}

    return MixedAdamW


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Make an EMA of all weights; update it after every step."""
    return AveragedModel(model, multi_avg_fn=partial(move_ema, decay), use_buffers=False)


def move_ema(decay: float, averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
    """Move average <- d average + (1 - d) current; d rises from 0.1 to `decay`, so that the start is soon forgotten."""
    n = float(updates)
    torch._foreach_lerp_(list(averages), list(current), 1 - min(decay, (1 + n) / (10 + n)))


class Diverged(ValueError):
    """Training met NaN or infinity; it stopped before the weights were touched."""


def check_finite(step: int, loss: float, norm: float, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise Diverged, with the step and a parameter, where the loss or the norm of all gradients is not finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    bad = [name for name, p in parameters if p.grad is not None and not p.grad.isfinite().all()]
    where = f"the gradient of {bad[0]}" + (f" and {len(bad) - 1} more" if bad[1:] else "") if bad else "no gradient"
    raise Diverged(
        f"Step {step} stopped before its update: the loss is {loss:g} and {where} is not finite. The last save is"
        " whole; a lower --learning-rate or --precision fp32 may help."
    )
