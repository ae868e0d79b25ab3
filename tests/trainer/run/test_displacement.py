"""Training moves every tensor of every preset through the commands' own loop, and the report names what stands
still."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_run as tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.presets import PRESETS, with_condition, with_guidance
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Plan, TrainingClip, batch_for
from stillmotion.trainer.clips.known import as_it_is, of_frames
from stillmotion.trainer.losses.decoupling import Decoupling
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.options import InflateOptions
from stillmotion.trainer.run import optimiser
from stillmotion.trainer.run.displacement import by_part, delta_rms, movements, report, standing
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.loop import start_training, train
from stillmotion.trainer.run.optimiser import Schedule
from stillmotion.trainer.run.requests import Requests
from stillmotion.trainer.run.terms import terms_of

STEPS, FRAMES = 16, 4
FEWSHOT = InflationConfig(None, CrossFrames(), Recurrence(), Queries(4))
CONFIGS = {
    **{name: partial(preset, frames=FRAMES) for name, preset in PRESETS.items()},
    "fewshot": lambda structure: FEWSHOT,
    "fewshot as printed": lambda structure: InflationConfig(
        Temporal(), CrossFrames(), Recurrence("paper_rnn"), Queries(None)
    ),
    "decouple": lambda structure: with_guidance(PRESETS["higen"](structure, FRAMES), FRAMES),
    "condition": lambda structure: with_condition(PRESETS["animatediff"](structure, FRAMES)),
}


@pytest.fixture(scope="module")
def clips():
    """Clips whose frames are alike: a moving pattern, so that there is something to learn over time."""
    torch.manual_seed(2)
    still = torch.randn(3, 1, 4, 8, 8)
    moving = [torch.cat([clip.roll(k, -1) for k in range(FRAMES)]) for clip in still]
    return [TrainingClip(f"{i}", f"{i}", z, torch.randn(77, 16)) for i, z in enumerate(moving)], torch.zeros(77, 16)


def trained(name, clips, folder):
    """The inflation before, its tensors after a short training of a preset, and the way AdamW could have gone."""
    unet = tiny.tiny_unet()
    config = CONFIGS[name](structure_of(unet))
    start, model = (fresh_inflation(config, structure_of(unet), 0) for _ in range(2))
    AcceleratorState._reset_state(True)
    network, plan = InflatedUNet(unet, model), Plan(0, FRAMES, (8, 8), caption_dropout=0.1)
    given = {"preset": name} if name in PRESETS else {"preset": "animatediff"}
    options = InflateOptions(videos="v", base="b", ramp=10, queue=32, **given)
    schedule = Schedule(STEPS, 1e-3, warm_up=2)
    decoupling = Decoupling() if config.prior else None
    objective = Objective(network, plan, terms_of(options, network, plan), decoupling)
    training = start_training(Accelerator(cpu=True), objective, schedule)
    source, known = partial(batch_for, plan, *clips, 1), first_frame if config.condition else as_it_is
    with Requests(folder) as requests:
        assert train(training, lambda *place: known(source(*place)), requests, lambda *_: None)
    tensors = {n: t.detach().clone() for n, t in training.inflation.state_dict().items()}
    return start, tensors, schedule.path(STEPS)


def first_frame(batch):
    """Image-to-video."""
    return replace(batch, condition=of_frames(batch.latents, [0]).condition)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_moves_every_tensor(name, clips, tmp_path):
    start, tensors, path = trained(name, clips, tmp_path)
    moved = movements(tensors, start, path)
    print({part: f"{share:.3f}" for part, share in by_part(moved, start).items()})
    assert {name: f"{moved[name]:.1e}" for name in standing(moved, start)} == {}, "no formula holds a tensor still"


def test_with_adamws_own_eps_parts_would_stand_still(clips, tmp_path, monkeypatch):
    """The control: the measure sees what once stood still."""
    monkeypatch.setattr(optimiser, "EPS", 1e-4)
    start, tensors, path = trained("fewshot", clips, tmp_path)
    assert any(".recurrence." in name for name in standing(movements(tensors, start, path), start))


@pytest.fixture
def half_moved():
    unet = tiny.tiny_unet()
    start = fresh_inflation(InflationConfig(queries=Queries(2)), structure_of(unet), 0)
    return start, {name: tensor + (0.5 if "attn1" in name else 0.0) for name, tensor in start.state_dict().items()}


def test_the_report_lists_every_module_and_names_what_stands(half_moved, caplog):
    start, tensors = half_moved
    caplog.set_level("INFO", "stillmotion")
    reported = report(tensors, start, 2.0)
    assert reported["delta_rms"] == delta_rms(tensors, start) and reported["moved"] == {"queries": pytest.approx(0.125)}
    assert {round(d, 5) for path, d in reported["delta_rms"].items() if "attn1" in path} == {0.5}
    *listed, warning = caplog.records
    assert all(any(path in record.getMessage() for record in listed) for path in reported["delta_rms"])
    named = warning.getMessage()
    assert warning.levelname == "WARNING" and f"{len(tensors) // 2} of {len(tensors)} tensors moved less than" in named
    assert "attn2" in named and "attn1" not in named


def test_the_report_is_silent_where_all_moved_and_names_all_where_none_did(half_moved, caplog):
    start, _ = half_moved
    caplog.set_level("WARNING", "stillmotion")
    report({name: tensor + 0.5 for name, tensor in start.state_dict().items()}, start, 2.0)
    assert not caplog.records
    report(start.state_dict(), start, 2.0)
    count = len(start.state_dict())
    assert f"{count} of {count} tensors" in caplog.text


def test_gates_are_judged_together_as_one_may_come_back():
    unet = tiny.tiny_unet()
    start = fresh_inflation(InflationConfig(recurrence=Recurrence()), structure_of(unet), 0)
    gates = [name for name in start.state_dict() if name.endswith("gamma")]
    went = {name: tensor + (name not in gates[1:]) for name, tensor in start.state_dict().items()}
    moved = movements(went, start, 1.0)
    assert {round(moved[name], 6) for name in gates} == {round(0.1 * (1 / len(gates)) ** 0.5, 6)}
    assert not set(gates) & set(standing(moved, start)) and len(gates) > 2


def test_a_gate_is_measured_by_its_own_learning_rate():
    unet = tiny.tiny_unet()
    start = fresh_inflation(InflationConfig(recurrence=Recurrence()), structure_of(unet), 0)
    moved = movements({name: tensor + 1.0 for name, tensor in start.state_dict().items()}, start, 2.0)
    assert {round(share, 6) for name, share in moved.items() if name.endswith("gamma")} == {0.05}
    assert {round(share, 6) for name, share in moved.items() if not name.endswith("gamma")} == {0.5}
