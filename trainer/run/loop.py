"""The training step and the loop around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ...networks.inflation import Inflation
from ..base.division import prepare, reduce_unsharded
from ..clips.batches import Batch, Plan
from ..losses.objective import Losses, Objective
from ..show.progress import working
from .optimiser import Schedule, check_finite, make_ema, make_optimizer, set_learning_rate
from .requests import NOTHING, STOP, Requests

SMALLEST_SCALE = 1.0
"""fp16 halves its loss scale until gradients are finite; below this one they are not too large but not numbers."""


BatchSource = Callable[[int, int], Batch]
"""A micro-batch for a step and its number in the step, counted over processes and accumulation."""


@dataclass
class Training:
    """A run in memory: what changes from step to step, and what decides how. `step` counts the updates made.

    `model` is the objective as accelerate runs it. `positions` says how far each process is in its streams, where it
    has any. `spatial_grad_scale` multiplies the gradients of the image model's own weights.
    """

    accelerator: Accelerator
    model: nn.Module
    objective: Objective
    inflation: Inflation
    optimizer: Optimizer
    ema: AveragedModel | None
    schedule: Schedule
    batch_size: int = 1
    step: int = 0
    positions: tuple[tuple[int, ...], ...] = ()
    spatial_grad_scale: float = 1.0

    @property
    def plan(self) -> Plan:
        return self.objective.plan

    @property
    def raw_optimizer(self) -> Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def weights(self) -> nn.ModuleDict:
        """Return what is averaged, saved and exported: the inflation, and what trains of the image model."""
        return weights_of(self.objective)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return names and parameters of all that trains: the inflation, and what a loss has of its own."""
        inflation = {id(p): name for name, p in self.inflation.named_parameters()}
        named = self.objective.named_parameters()
        return [(inflation.get(id(p), name), p) for name, p in named if p.requires_grad]

    def clipped_together(self) -> list[list[nn.Parameter]]:
        """Return what trains in groups whose gradients are clipped by one norm: looks learn apart from all else."""
        apart = set(self.objective.network.appearance.parameters()) if self.objective.network.appearance else set()
        trained = [p for _, p in self.trained()]
        return [group for group in ([p for p in trained if p not in apart], [*apart]) if group]


class Stepped(NamedTuple):
    """One update: mean loss of its clips over all processes, norm of the gradients before clipping, parts of the
    loss."""

    loss: float
    gradient_norm: float
    parts: dict[str, float]


@dataclass(frozen=True)
class StepReport:
    """One step: its loss, the learning rate, and the seconds that it took."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    parts: dict[str, float]


def start_training(
    accelerator: Accelerator,
    objective: Objective,
    schedule: Schedule,
    *,
    batch_size: int = 1,
    ema: float | None = None,
    eight_bit: bool = False,
    spatial_rate: float = 1.0,
    spatial_grad_scale: float = 1.0,
) -> Training:
    """Start a run at step 0. `ema` is the decay of the EMA of the weights, None for none.

    Args:
        spatial_rate, spatial_grad_scale: factors on the learning rate and on the gradients of what trains of the image
            model.
    """
    inflation = objective.inflation
    averaged = None if ema is None else make_ema(weights_of(objective), ema)
    objective.to(accelerator.device)
    spatial = list(objective.network.spatial.parameters()) if objective.network.spatial else []
    optimizer = make_optimizer(objective, eight_bit, spatial, spatial_rate)
    wrapped, optimizer = prepare(accelerator, objective, inflation, optimizer)
    if averaged is not None:  # copied while that was allowed, and now where the weights are, sharded as they are
        now = weights_of(objective).state_dict()
        averaged.module.load_state_dict({name: t.clone() for name, t in now.items()}, assign=True)
    return Training(
        accelerator,
        wrapped,
        objective,
        inflation,
        optimizer,
        averaged,
        schedule,
        batch_size,
        spatial_grad_scale=spatial_grad_scale,
    )


def weights_of(objective: Objective) -> nn.ModuleDict:
    modules = {"inflation": objective.inflation, "spatial": objective.network.spatial}
    return nn.ModuleDict({name: module for name, module in modules.items() if module is not None})


def train(
    training: Training,
    source: BatchSource,
    requests: Requests,
    after_step: Callable[[StepReport, bool], None],
    position: Callable[[], tuple[int, ...]] = tuple,
) -> bool:
    """Run to the last step of the schedule. Tell whether it got there: False where a request stopped it.

    Args:
        after_step: is told of every step, and whether a save was asked for (a stop is one, too).
        position: how far this process is in its streams.
    """
    hidden = not training.accelerator.is_main_process
    with working("training", training.schedule.steps, "step", initial=training.step, leave=True, hidden=hidden) as bar:
        for step in range(training.step + 1, training.schedule.steps + 1):
            began = time.perf_counter()
            done = update(training, source, step)
            training.step = step
            bar.set_postfix_str(f"loss {done.loss:.4f}", refresh=False)
            bar.update()
            wish, training.positions = agree(training.accelerator, requests.pending(), position())
            report = StepReport(
                step=step,
                loss=done.loss,
                gradient_norm=done.gradient_norm,
                learning_rate=training.schedule.at(step),
                seconds=time.perf_counter() - began,
                parts=done.parts,
            )
            after_step(report, wish != NOTHING)
            requests.done(wish)
            if wish == STOP:
                return False
    return True


def update(training: Training, source: BatchSource, step: int) -> Stepped:
    """Make one optimizer step, 1, 2, ….

    Raises:
        Diverged: before any weight was changed.
    """
    accelerator = training.accelerator
    set_learning_rate(training.raw_optimizer, training.schedule.at(step))
    losses = []
    for micro in range(accelerator.gradient_accumulation_steps):
        batch = source(step, accelerator.process_index + accelerator.num_processes * micro)
        with accelerator.accumulate(training.model):
            losses.append(backward(training, batch, step))
    loss, parts = means(accelerator, losses)
    trained = training.trained()
    reduce_unsharded(accelerator, [p for _, p in trained])
    accelerator.unscale_gradients()
    scale_gradients(training)
    norm = gradient_norm([p for _, p in trained])
    check(training, step, loss, norm, trained)  # before clipping, which multiplies all gradients by a norm that is NaN
    for group in training.clipped_together():
        nn.utils.clip_grad_norm_(group, 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.ema is not None:
        training.ema.update_parameters(training.weights)
    training.objective.after_step(losses, accelerator.gather)
    return Stepped(loss, norm, parts)


def scale_gradients(training: Training) -> None:
    """Multiply the gradients of the image model's own weights, as HiGen's code does.

    AdamW's steps do not depend on it; only a clip by the norm of all gradients, and gradients near eps, feel it.
    """
    spatial = training.objective.network.spatial
    if spatial is not None and training.spatial_grad_scale != 1:
        gradients = [p.grad for p in spatial.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, training.spatial_grad_scale)


def backward(training: Training, batch: Batch, step: int) -> Losses:
    losses = training.model(batch.to(training.accelerator.device), step)
    training.accelerator.backward(losses.total)
    return losses._replace(total=losses.total.detach())


def means(accelerator: Accelerator, losses: Sequence[Losses]) -> tuple[float, dict[str, float]]:
    """Average the loss, and each of its parts over the accumulated batches that have it, over all processes."""
    names = list(dict.fromkeys(name for one in losses for name in one.parts))
    parts = [torch.stack([one.parts[name] for one in losses if name in one.parts]).mean() for name in names]
    total = torch.stack([one.total for one in losses]).mean()
    total, *parts = accelerator.reduce(torch.stack([total, *parts]).float(), "mean").tolist()
    return total, dict(zip(names, parts))


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm().item()


def check(training: Training, step: int, loss: float, norm: float, trained: list[tuple[str, nn.Parameter]]) -> None:
    """Refuse NaN; infinite gradients are no fault in fp16 while its loss scale can be lowered: the update is
    skipped."""
    scaler = training.accelerator.scaler
    if scaler is not None and math.isfinite(loss) and scaler.get_scale() > SMALLEST_SCALE:
        return
    check_finite(step, loss, norm, trained)


def agree(accelerator: Accelerator, wish: int, position: tuple[int, ...]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Return the strongest wish of any process, the same on all of them, and the positions of all."""
    both = accelerator.gather(torch.tensor([[wish, *position]], device=accelerator.device))
    return int(both[:, 0].max()), tuple(map(tuple, both[:, 1:].tolist()))
