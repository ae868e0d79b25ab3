"""`fewshot` and `inflate` with what trains divided between two processes."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.processes import make_accelerator, this_process
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from two_processes import DDP, FSDP

RUN = "--size 64x48 --steps 4 --learning-rate 1e-3 --ema 0.9 --save-every 2"
PREVIEWS = "--held-out 1 --held-out-every 2 --preview-every 2 --preview-steps 2"
FEWSHOT = f"--frames 3 --precision bf16 --checkpointing {PREVIEWS}"
HARIVO = "--preset lumiere-harivo --regularisation 0.1 --trs 0.1 --contrastive 2 --ramp 0 --queue 32"
INFLATE = f"--frames 4 --batch-size 4 --preview-every none {HARIVO}"  # 16 frames a step fill the queue in two steps


@pytest.fixture(scope="module")
def run(place, on_two_processes):
    """Runs a command into a folder of that name."""

    def run(way, command, output, *more, **changes):
        options = [*RUN.split(), *{"fewshot": FEWSHOT, "inflate": INFLATE}[command].split(), *more]
        return on_two_processes(way, tiny.words(place, command, output, *options), **changes)

    return run


@pytest.fixture(scope="module")
def trained(place, run):
    """The folder of a command's run, the same one every time it is asked for."""
    folders = {}

    def folder(way, command):
        if (way, command) not in folders:
            name = f"{command}-{len(folders)}"
            code, said = run(way, command, name, estimate=(way, command) == (FSDP, "fewshot"))
            assert code == 0, said
            folders[way, command] = place / name
        return folders[way, command]

    return folder


def motion_file(folder):
    return load_file(folder / f"{folder.name}.safetensors")


def last_state(folder):
    return read_state(saved_states(folder / "saves")[-1])


def going_on_from_the_first_save(before, folder):
    (folder / "saves").mkdir(parents=True)
    shutil.copy(saved_states(before / "saves")[0], folder / "saves")
    return folder


def equal(a, b):
    """Whether two runs ended in the same motion file and state, to the bit."""
    ours, theirs = last_state(a), last_state(b)
    parts = "weights", "optimizer", "ema", "objective"
    return same(motion_file(a), motion_file(b)) and all(same(ours[part], theirs[part]) for part in parts)


BEFORE_A_NORM = "over_pixels.bias", "over_frames.conv.bias", "output_blocks.3.1.factorised.out.bias"
"""Biases that a GroupNorm behind them takes away: at 32 channels it has one a group. Their gradients are rounding and
nothing else, of which AdamW makes whole steps."""


def close(a, b):
    """Within a tenth of a step, where gradients are more than rounding."""
    names = [name for name in a if not name.endswith(BEFORE_A_NORM)]
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-4, rtol=0) for name in names)


def numbers(folder):
    """What a run logged, but for the time that steps took."""
    lines = [line for line in read_log(folder / "log.jsonl") if "event" not in line]
    return [(line["step"], name, value) for line in lines for name, value in line.items() if name != "seconds"]


@pytest.mark.parametrize("command", ["fewshot", "inflate"])
def test_divided_weights_give_the_motion_file_and_the_log_of_whole_ones(trained, command):
    divided, whole = trained(FSDP, command), trained(DDP, command)
    assert close(motion_file(divided), motion_file(whole))
    logged = numbers(whole)
    assert numbers(divided) == [(step, name, pytest.approx(value, rel=1e-4)) for step, name, value in logged]
    clipped = [value for _, name, value in logged if name == "gradient_norm" and value > 1]
    assert clipped or command == "fewshot"


@pytest.mark.parametrize("command", ["fewshot", "inflate"])
def test_each_process_holds_half_of_weights_moments_and_running_mean(trained, command):
    folder = trained(FSDP, command)
    for rank in range(2):
        share = json.loads(Path(f"{folder}.{rank}.json").read_text())
        assert share["units"] > 8, "what is gathered at once is not everything"
        assert 0.45 < share["weights"] / share["all"] < 0.55
        assert share["moments"] == share["weights"] and 0.45 < share["mean"] / share["whole mean"] < 0.55


@pytest.mark.parametrize("before, after", [(FSDP, DDP), (DDP, FSDP)], ids=["fsdp first", "fsdp then"])
def test_saves_are_whole_so_that_a_run_goes_on_with_and_without_fsdp(place, run, trained, before, after):
    folder = going_on_from_the_first_save(trained(before, "fewshot"), place / f"after{before.split()[0]}")
    code, said = run(after, "fewshot", folder.name, "--resume")
    assert code == 0, said
    assert close(motion_file(folder), motion_file(trained(before, "fewshot")))


def test_stopped_and_resumed_gives_the_same_motion_file_and_state(place, run, trained):
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert run(FSDP, "fewshot", "stopped")[0] == 0
    assert last_state(place / "stopped")["step"] == 1 and not (place / "stopped/stopped.safetensors").exists()
    code, said = run(FSDP, "fewshot", "stopped", "--resume")
    assert code == 0, said
    assert equal(place / "stopped", trained(FSDP, "fewshot"))


def test_what_losses_remember_goes_on_too(place, run, trained):
    folder = going_on_from_the_first_save(trained(FSDP, "inflate"), place / "remembers")
    code, said = run(FSDP, "inflate", "remembers", "--resume")
    assert code == 0, said
    assert equal(folder, trained(FSDP, "inflate"))


def test_a_loss_of_one_process_that_is_nan_stops_both_before_the_update(place, run):
    code, said = run(FSDP, "fewshot", "poisoned", poison=True)
    assert code != 0 and "Step 3 stopped before its update: the loss is nan and the gradient of " in said
    assert last_state(place / "poisoned")["step"] == 2


@pytest.fixture
def with_fsdp(monkeypatch):
    def set_up(**variables):
        for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv("FSDP_VERSION", raising=False)
    return set_up


@pytest.mark.parametrize(
    "variables, what",
    [
        ({}, "FSDP version 1"),
        ({"FSDP_VERSION": "1"}, "FSDP version 1"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP with offloading"),
    ],
)
def test_what_cannot_train_is_refused(with_fsdp, variables, what):
    with_fsdp(**variables)
    with pytest.raises(ValueError, match=rf"set up for {what}, .* `--use_fsdp --fsdp_version 2`"):
        this_process()


def test_what_stands_of_fsdp_in_the_environment_of_a_run_without_it_is_ignored(with_fsdp):
    with_fsdp(ACCELERATE_USE_FSDP="false", FSDP_OFFLOAD_PARAMS="true", ACCELERATE_USE_CPU="true")
    assert this_process().num_processes == 1


@pytest.mark.parametrize("fsdp", [True, False])
def test_gradients_are_divided_between_the_batches_of_a_step_too(with_fsdp, fsdp):
    with_fsdp(FSDP_VERSION="2", ACCELERATE_USE_FSDP=str(fsdp).lower())
    AcceleratorState._reset_state(True)
    made = make_accelerator(FewShotOptions(videos=Path("clips"), base=Path("base"), precision="fp32", accumulation=3))
    assert made.gradient_accumulation_steps == 3
    assert made.gradient_state.plugin_kwargs.get("sync_each_batch", False) == fsdp


def test_eight_bit_is_refused(with_fsdp):
    with_fsdp(FSDP_VERSION="2")
    with pytest.raises(ValueError, match="--eight-bit .* leave it out, or start the processes .*--multi_gpu"):
        make_accelerator(FewShotOptions(videos=Path("clips"), base=Path("base"), precision="fp32", eight_bit=True))
