"""The training step and the loop around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from ..networks.inflation import Inflation
from .batches import Batch, Plan, TrainingClip, batch_for
from .host import InflatedUNet
from .losses import batch_loss
from .optimiser import Schedule, check_finite, make_average, make_optimizer, set_learning_rate
from .requests import NOTHING, STOP, Requests

SMALLEST_SCALE = 1.0
"""fp16 halves its loss scale until gradients are finite; below this one they are not too large but not numbers."""


@dataclass
class Training:
    """A run in memory: what changes from step to step, and what decides how. `step` counts the updates made."""

    accelerator: Accelerator
    model: nn.Module
    inflation: Inflation
    optimizer: Optimizer
    average: AveragedModel | None
    plan: Plan
    schedule: Schedule
    batch_size: int = 1
    step: int = 0

    @property
    def raw_optimizer(self) -> Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)


@dataclass(frozen=True)
class Report:
    """What one step was: mean loss of its clips over all processes, norm of the gradients before clipping, seconds."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float


def start_training(
    accelerator: Accelerator,
    model: InflatedUNet,
    plan: Plan,
    schedule: Schedule,
    *,
    batch_size: int = 1,
    average: float | None = None,
    eight_bit: bool = False,
) -> Training:
    """A run at step 0. `average` is the decay of the running mean of the weights, None for none."""
    assert model.inflation is not None, "there is nothing to train"
    model.to(accelerator.device)
    mean = None if average is None else make_average(model.inflation, average)
    optimizer = make_optimizer(model, eight_bit)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Training(accelerator, wrapped, model.inflation, optimizer, mean, plan, schedule, batch_size)


def train(
    training: Training,
    clips: Sequence[TrainingClip],
    no_caption: Tensor,
    requests: Requests,
    after_step: Callable[[Report, bool], None],
) -> bool:
    """Runs to the last step of the schedule. Says whether it got there: False where a request stopped it.

    Args:
        clips: what is learnt from; `no_caption` embeds the empty caption, (tokens, width).
        after_step: is told of every step, and whether a save was asked for (a stop is one, too).
    """
    with progress_bar(training) as bar:
        for step in range(training.step + 1, training.schedule.steps + 1):
            began = time.perf_counter()
            loss, norm = update(training, clips, no_caption, step)
            training.step = step
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update()
            wish = agree(training.accelerator, requests.pending())
            report = Report(step, loss, norm, training.schedule.at(step), time.perf_counter() - began)
            after_step(report, wish != NOTHING)
            requests.done(wish)
            if wish == STOP:
                return False
    return True


def progress_bar(training: Training) -> tqdm:
    hidden = not training.accelerator.is_main_process
    return tqdm(total=training.schedule.steps, initial=training.step, desc="training", unit="step", disable=hidden)


def update(training: Training, clips: Sequence[TrainingClip], no_caption: Tensor, step: int) -> tuple[float, float]:
    """One optimiser step, 1, 2, …; returns the mean loss over all processes and the norm of the gradients.

    Raises:
        Diverged: before any weight was changed.
    """
    accelerator, plan = training.accelerator, training.plan
    set_learning_rate(training.raw_optimizer, training.schedule.at(step))
    losses = []
    for micro in range(accelerator.gradient_accumulation_steps):
        number = accelerator.process_index + accelerator.num_processes * micro
        batch = batch_for(plan, clips, no_caption, step, number, training.batch_size)
        with accelerator.accumulate(training.model):
            losses.append(backward(training, batch))
    loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
    accelerator.unscale_gradients()
    norm = gradient_norm(training.inflation)
    check(training, step, loss, norm)  # before clipping, which multiplies all gradients by a norm that is NaN
    nn.utils.clip_grad_norm_(training.inflation.parameters(), 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.average is not None:
        training.average.update_parameters(training.inflation)
    return loss, norm


def backward(training: Training, batch: Batch) -> Tensor:
    loss = batch_loss(training.model, batch.to(training.accelerator.device), training.plan).mean()
    training.accelerator.backward(loss)
    return loss.detach()


def gradient_norm(model: nn.Module) -> float:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm().item()


def check(training: Training, step: int, loss: float, norm: float) -> None:
    """Infinite gradients are no fault in fp16 as long as its loss scale can still be lowered: the update is skipped."""
    scaler = training.accelerator.scaler
    if scaler is not None and math.isfinite(loss) and scaler.get_scale() > SMALLEST_SCALE:
        return
    check_finite(step, loss, norm, training.inflation.named_parameters())


def agree(accelerator: Accelerator, wish: int) -> int:
    """The strongest wish of any process, the same on all of them."""
    wishes = accelerator.gather(torch.tensor([wish], device=accelerator.device))
    return int(wishes.max())
