import time
from dataclasses import replace

import pytest
import tiny_run as tiny
import torch
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run import estimate
from stillmotion.trainer.run.estimate import (
    GIB,
    LiveBytes,
    Memory,
    advice,
    blank_batch,
    estimate_memory,
    measure_activations,
    seconds_of_a_step,
    time_step,
)


def tiny_objective(checkpointing=False):
    return Objective(tiny.tiny_model(checkpointing=checkpointing), tiny.tiny_plan())


def real_pass(model, rows, cells):
    """Loss of a real forward pass on the inputs that the estimate uses."""
    return model(blank_batch(model.network, rows, cells), 1).total


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_real_pass_holds_at_its_peak(checkpointing):
    rows, cells = (2, 2), (4, 6)
    estimated = measure_activations(tiny_objective(checkpointing), rows, cells)
    model = tiny_objective(checkpointing)
    with LiveBytes() as live:
        real_pass(model, rows, cells).backward()
    assert estimated == pytest.approx(live.peak, rel=0.02)  # when Python frees what differs a little


def test_gradients_of_the_batch_before_are_there_from_the_start():
    """Of a second pass the estimate counts what there is beside them."""
    rows, cells = (2, 2), (4, 6)
    estimated = measure_activations(tiny_objective(), rows, cells, accumulating=True)
    model = tiny_objective()
    real_pass(model, rows, cells).backward()
    with LiveBytes() as live:
        real_pass(model, rows, cells).backward()
    assert estimated == pytest.approx(live.peak, rel=0.02)
    assert estimated < measure_activations(tiny_objective(), rows, cells)


def test_the_estimate_covers_what_autograd_saves():
    """An independent count, without the class under test: distinct storages that the graph of a real pass keeps."""
    rows, cells = (1, 4), (8, 8)
    model, saved = tiny_objective(), {}
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = real_pass(model, rows, cells)
    estimated = measure_activations(tiny_objective(), rows, cells)
    assert loss.requires_grad and sum(saved.values()) < estimated < 1.5 * sum(saved.values())


def test_checkpointing_saves_memory():
    model = tiny_objective()
    plain = measure_activations(model, (1, 6), (8, 8))
    model.network.checkpointing = True
    assert measure_activations(model, (1, 6), (8, 8)) < 0.6 * plain


def test_the_model_is_as_it_was():
    model = tiny_objective()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_activations(model, (1, 2), (8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(type(p) is torch.nn.Parameter and p.grad is None for p in model.parameters())


def test_weights_gradients_and_moments_are_counted(monkeypatch):
    model = tiny_objective()
    trained = sum(p.numel() for p in model.network.inflation.parameters())
    monkeypatch.setattr(estimate, "measure_activations", lambda *_: 9 * trained)
    memory = estimate_memory(model, (1, 2), (8, 8), ema=True, eight_bit=False)
    assert memory.trained == memory.gradients == memory.ema == 4 * trained
    assert memory.frozen == 4 * sum(p.numel() for p in tiny.tiny_unet().parameters())
    assert (memory.optimizer, memory.activations, memory.update) == (8 * trained, 5 * trained, 4 * trained)
    assert memory.total == memory.frozen + 25 * trained
    accumulated = estimate_memory(model, (1, 2), (8, 8), ema=True, eight_bit=False, accumulation=2)
    assert (accumulated.gradients, accumulated.activations) == (4 * trained, 9 * trained)
    eight = estimate_memory(model, (1, 2), (8, 8), ema=False, eight_bit=True)
    named = model.network.inflation.named_parameters()
    fine = sum(p.numel() for name, p in named if p.numel() < 4096 or ".recurrence." in name)
    assert (eight.optimizer, eight.ema, eight.update) == (2 * (trained - fine) + 8 * fine, 0, 0)
    assert 0 < fine < trained


def test_activations_are_gone_when_the_optimiser_steps():
    memory = Memory(1, 2, 3, 4, 5, activations=10, update=7)
    assert memory.total == 25 and "activations" in str(memory) and "update" not in str(memory)
    memory = replace(memory, activations=6)
    assert memory.total == 22 and "update" in str(memory) and "activations" not in str(memory)


def test_sizes_are_written_in_a_unit_that_shows_them():
    assert str(Memory(GIB, 0, 0, 0, 0, 5 * 2**20)) == "1.00 GiB (frozen model 1.00 GiB, activations 5 MiB)"


def test_advice_comes_only_where_the_run_will_not_fit():
    memory = Memory(GIB, GIB, GIB, 2 * GIB, GIB, 4 * GIB)
    assert advice(memory, 11 * GIB, checkpointing=False, precision="fp32") is None
    said = advice(memory, 8 * GIB, checkpointing=False, precision="fp32")
    assert "10.0 GiB" in said and "8.0 GiB are free" in said and "--checkpointing" in said and "bf16" in said
    assert "--checkpointing" not in advice(memory, 8 * GIB, checkpointing=True, precision="bf16")


def test_the_first_repeat_is_not_timed():
    seconds = iter([0.3, 0.0])
    assert 0 <= time_step(lambda: Late(next(seconds)), 2) < 0.2 and not list(seconds)


def test_a_step_that_is_computed_behind_the_call_is_waited_for():
    assert time_step(lambda: Late(0.1), 1) >= 0.1


class Late:
    """A number that is not there yet, as the loss of a step on a GPU."""

    def __init__(self, seconds):
        self.seconds = seconds

    def item(self):
        time.sleep(self.seconds)
        return 1.0


def test_a_steps_time_is_the_mean_over_those_with_what_comes_now_and_then_and_those_without():
    run = []
    assert seconds_of_a_step(lambda step: run.append(step) or {1: 2.0, 3: 5.0}[step], [3]) == 3.0
    assert run == [1, 3], "each kind of step once"
    assert seconds_of_a_step(lambda step: 4.0, []) == 4.0
    kinds = seconds_of_a_step(lambda step: float(step % 2 == 0) + 10 * (step % 3 == 0), [2, 3])
    assert kinds == pytest.approx(0.5 + 10 / 3)
