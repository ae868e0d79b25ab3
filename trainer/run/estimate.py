"""How much memory a training step will take, found without computing it, and how long one takes."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from tqdm import tqdm

from ..base.host import InflatedUNet
from ..clips.batches import Batch
from ..losses.objective import Objective
from ..options import TrainOptions
from ..show.progress import working
from .loop import Training, backward, weights_of
from .optimiser import in_eight_bits

log = logging.getLogger("stillmotion")

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on the training device.

    `activations` is the most that lives at once in a forward and backward pass, `update` in the optimiser's step, when
    the activations are gone.
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    update: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """All that is there when most is, by name."""
        last = {"activations": self.activations} if self.activations > self.update else {"update": self.update}
        return {
            "frozen model": self.frozen,
            "trained weights": self.trained,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "EMA": self.ema,
            **last,
        }

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size_text(size)}" for name, size in self.parts.items() if size)
        return f"{size_text(self.total)} ({listed})"


def size_text(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def estimate_memory(
    objective: Objective,
    rows: tuple[int, int],
    cells: tuple[int, int],
    *,
    ema: bool,
    eight_bit: bool,
    accumulation: int = 1,
) -> Memory:
    """Estimate a step of `rows` = (clips, frames), so many times, with latents of `cells` = (width, height).

    Of weights that are divided among processes it is this one's share; what is gathered for a moment is not counted.
    """
    parameters = list(objective.parameters())
    trained = sum(bytes_of(p) for p in parameters if p.requires_grad)
    frozen = sum(bytes_of(t) for t in [*parameters, *objective.buffers()] if not t.requires_grad)
    coarse = [p for name, p in objective.named_parameters() if p.requires_grad and in_eight_bits(name, p)]
    moments = 2 * trained - (sum(3 * bytes_of(p) // 2 for p in coarse) if eight_bit else 0)  # two, in 1 byte or 4
    update = 0 if eight_bit else trained  # on a GPU, AdamW takes the roots of all second moments at once
    accumulating = accumulation > 1
    peak = measure_activations(objective, rows, cells, accumulating)
    gradients = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)  # not divided in that pass
    activations = peak if accumulating else max(0, peak - gradients)
    averaged = sum(map(bytes_of, weights_of(objective).parameters())) if ema else 0
    return Memory(frozen, trained, trained, moments, averaged, activations, update)


def bytes_of(tensor: Tensor) -> int:
    """Count the bytes of what this process has of a tensor."""
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.numel() * own.element_size()


def measure_activations(
    objective: Objective, rows: tuple[int, int], cells: tuple[int, int], accumulating: bool = False
) -> int:
    """Return the most bytes alive at once in a forward and backward pass, gradients included, beside the weights.

    Where batches are accumulated, the gradients of the one before are there from the start; then they do not count.

    The pass runs on tensors that have a shape and no data, on the network's own device, so that it takes the kernels
    that training will take; recomputed layers come out right because it is the same code. It has every loss that any
    step has. What the objective remembers of earlier steps, a resumed run's, has data.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, shapes_only(objective, fake):
        batch = blank_batch(objective.network, rows, cells)
        for parameter in objective.parameters():
            if accumulating and parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        with LiveBytes() as live:
            objective(batch, 0).total.backward()
    return live.peak


@contextmanager
def shapes_only(model: nn.Module, fake: FakeTensorMode) -> Iterator[None]:
    """Give the weights and buffers of a model a shape and no data inside. (`torch.func.functional_call` would end
    before the backward pass, which still needs them where layers are recomputed.) None is divided among processes, and
    the hooks that would gather them are off."""
    modules = list(model.modules())
    tables = [table for module in modules for table in (module._parameters, module._buffers)]
    hooks = [table for m in modules if hasattr(m, "unshard") for table in (m._forward_pre_hooks, m._forward_hooks)]
    before = [dict(table) for table in [*tables, *hooks]]
    for table in tables:
        table.update({name: shape_of(t, fake) for name, t in table.items() if t is not None})
    for table in hooks:
        table.clear()
    try:
        yield
    finally:
        for table, kept in zip([*tables, *hooks], before):
            table.update(kept)


def shape_of(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    if not isinstance(tensor, DTensor):
        return fake.from_tensor(tensor)
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, requires_grad=tensor.requires_grad)


def blank_batch(network: InflatedUNet, rows: tuple[int, int], cells: tuple[int, int]) -> Batch:
    """Return a batch of a shape, (clips, frames) of cells (width, height), on the network's device; there is nothing in
    it."""
    (clips, frames), device = rows, next(network.parameters()).device
    latents = torch.zeros(clips * frames, 4, cells[1], cells[0], device=device)
    timesteps = torch.zeros(clips * frames, dtype=torch.long, device=device)
    text = torch.zeros(clips * frames, 77, network.unet.config.cross_attention_dim, device=device)
    return Batch(latents, torch.zeros_like(latents), timesteps, text, frames, (0,) * clips)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors made inside, from their creation until nothing refers to them any more."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self._ignore(t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
        self._count(t for t in tree_iter(out) if isinstance(t, Tensor))
        return out

    def _ignore(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._seen.add(tensor.untyped_storage())

    def _count(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                self._seen.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def report_estimate(options: TrainOptions, training: Training, batch: Batch) -> None:
    """Log the memory a step will take before the first one runs, then how long it took and the run will take.

    Raises:
        ValueError: the step did not fit into the GPU's memory.
    """
    accelerator, plan = training.accelerator, training.plan
    with working("estimating the memory of a step"):
        memory = estimate_memory(
            training.objective,
            (options.batch_size, plan.frames),
            plan.cells,
            ema=options.ema is not None,
            eight_bit=options.eight_bit,
            accumulation=options.accumulation,
        )
    log.info("Memory of a step, estimated: %s", memory)
    free = free_memory(accelerator.device)
    on_device = memory.frozen + memory.trained + memory.ema + (memory.optimizer if training.step else 0)
    hint = free and advice(memory, free + on_device, checkpointing=options.checkpointing, precision=options.precision)
    if hint:
        log.warning("%s", hint)

    def timed(step: int) -> float:
        return time_step(lambda: backward(training, batch, step).total, 2 if free else 1)

    try:
        with working("timing a step"):
            one = seconds_of_a_step(timed, training.objective.everys)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"A step does not fit into the GPU's memory. {hint or ''}") from error
    training.optimizer.zero_grad()
    seconds, left = one * options.accumulation, options.steps - training.step
    log.info("A step takes %.2f s: %d steps about %s.", seconds, left, tqdm.format_interval(left * seconds))


def free_memory(device: torch.device) -> int | None:
    """Return bytes that are free on a GPU; unknown elsewhere."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def time_step(step: Callable[[], Tensor], repeats: int = 2) -> float:
    """Return seconds of the last of `repeats` runs of `step`, which returns its loss; the first one also loads
    kernels."""
    seconds = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        step().item()  # waits for a GPU, which works behind the Python that asks it to
        seconds = time.perf_counter() - began
    return seconds


def seconds_of_a_step(run: Callable[[int], float], everys: Sequence[int]) -> float:
    """Average the seconds of `run(step)` over the steps of a run, of which each kind is run once.

    Args:
        everys: some parts of a step come at the multiples of these alone.
    """
    period, kinds = math.lcm(*everys), {}
    for step in range(1, period + 1):
        kinds.setdefault(tuple(step % every == 0 for every in everys), []).append(step)
    return sum(len(steps) * run(steps[0]) for steps in kinds.values()) / period


def advice(memory: Memory, free: int, *, checkpointing: bool, precision: str) -> str | None:
    """Say what to change where a run will not fit into `free` bytes, None where it will."""
    if memory.total <= 0.95 * free:
        return None
    tries = ["--checkpointing"] if not checkpointing else []
    tries += ["--precision bf16"] if precision == "fp32" else []
    tries += ["a smaller --size", "fewer --frames", "--eight-bit"]
    return f"This needs about {memory.total / GIB:.1f} GiB and {free / GIB:.1f} GiB are free: try {', '.join(tries)}."
