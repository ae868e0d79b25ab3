import contextlib
import errno
import os
import random
import signal
from pathlib import Path

import own_process
import pytest
import tiny_run as tiny
import torch
from stillmotion.networks.atomic import Recorder, write_durably
from stillmotion.trainer.run import checkpoints
from stillmotion.trainer.run.checkpoints import (
    check_same_facts,
    keep_latest,
    read_state,
    restore,
    same,
    save_state,
    state_of,
)
from stillmotion.trainer.run.saves import saved_states


@pytest.fixture
def run(tmp_path):
    """Starts the tiny training in a process of its own, which sends the numbers of the steps it made."""

    def start(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        steps, made = own_process.CONTEXT.Pipe(duplex=False)
        process = own_process.start(tiny.train_with_saves, tmp_path / folder, made)
        made.close()
        return process, steps

    return start


def stopped_at(started, step, number):
    """Sends a signal once `step` was made and gives the steps that followed, and the exit code."""
    process, steps = started
    while steps.recv() != step:
        pass
    os.kill(process.pid, number)
    return ended(started)


def ended(started):
    """The steps that are still made, and the exit code."""
    process, steps = started
    rest = []
    with contextlib.suppress(EOFError):
        while True:
            rest.append(steps.recv())
    process.join(120)
    return rest, process.exitcode


def finished(started):
    steps, code = ended(started)
    assert code == 0
    return steps


def test_a_run_killed_at_any_step_and_resumed_equals_one_that_was_not(run, tmp_path):
    step = random.SystemRandom().randint(1, 8)
    uninterrupted = run("whole")
    assert stopped_at(run("killed"), step, signal.SIGKILL)[1] == -signal.SIGKILL
    assert finished(uninterrupted) == list(range(1, 10))
    resumed = finished(run("killed"))
    assert resumed[-1] == 9 and 1 <= resumed[0] <= step + 2
    whole, killed = (read_state(saved_states(tmp_path / folder)[-1]) for folder in ("whole", "killed"))
    assert whole["step"] == 9 and same(whole, killed), f"killed after step {step}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_the_step_and_exit_with_130(run, tmp_path, number):
    later, code = stopped_at(run("stopped"), 3, number)
    assert code == 130 and len(later) <= 2
    assert read_state(saved_states(tmp_path / "stopped")[-1])["step"] == max([3, *later])


def test_a_restored_run_goes_on_to_the_bit(tmp_path):
    whole = tiny.tiny_training()
    tiny.run_steps(whole, range(1, 4))
    path = save_state(tmp_path, state_of(whole, {"a": 1}))
    losses = tiny.run_steps(whole, range(4, 6))
    other = tiny.tiny_training()
    restore(other, read_state(path))
    assert tiny.run_steps(other, range(4, 6)) == losses
    assert same(state_of(other, {}), {**state_of(whole, {}), "step": 0})


def test_a_state_that_lacks_the_moments_is_not_a_resume(tmp_path):
    """Shows that the test above can fail: without AdamW's moments the next step is another one."""
    whole = tiny.tiny_training()
    tiny.run_steps(whole, range(1, 4))
    other = tiny.tiny_training()
    restore(other, {**state_of(whole, {}), "optimizer": other.raw_optimizer.state_dict()})
    tiny.run_steps(whole, [4])
    tiny.run_steps(other, [4])
    assert not same(state_of(other, {})["weights"], state_of(whole, {})["weights"])


def small_state(step):
    return {"format": checkpoints.FORMAT, "step": step, "facts": "{}", "weights": {"x": torch.randn(1000)}}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_one_sentence_and_keeps_the_save_before(tmp_path, monkeypatch, call):
    old = save_state(tmp_path, small_state(1))
    content = old.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*{"write": (Recorder, "write"), "fsync": (os, "fsync")}[call], full)
    with pytest.raises(OSError, match=r"disk is full .*state-000002\.pt could not be saved.*--resume"):
        save_state(tmp_path, small_state(2))
    assert [path.name for path in tmp_path.iterdir()] == [old.name] and old.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_the_disks_own_error_comes_through_torch():
    with pytest.raises(OSError) as caught:
        write_durably(Path("/dev/full"), lambda file: torch.save(small_state(1), file))
    assert caught.value.errno == errno.ENOSPC


def test_what_reads_back_differently_never_gets_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "read_state", lambda path: small_state(1))
    with pytest.raises(OSError, match="reads back differently"):
        save_state(tmp_path, small_state(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:1500] + b"\1\2\3" + b[1503:], lambda b: b""]
)
def test_a_damaged_save_is_named(tmp_path, damage):
    path = save_state(tmp_path, small_state(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"state-000001\.pt is damaged.*go"):
        read_state(path)


def test_a_save_cannot_run_code(tmp_path):
    torch.save({"format": checkpoints.FORMAT, "trap": Path("x")}, tmp_path / "state-000001.pt")
    with pytest.raises(ValueError, match="damaged"):
        read_state(tmp_path / "state-000001.pt")


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 99, 100, 1000):
        save_state(tmp_path, small_state(step))
        (tmp_path / f"m-{step:06d}.safetensors").touch()
    keep_latest(tmp_path, ("state-*.pt", "m-*.safetensors"), 2)
    assert [path.name for path in saved_states(tmp_path)] == ["state-000100.pt", "state-001000.pt"]
    assert len(list(tmp_path.glob("m-*"))) == 2


def test_steps_are_in_the_order_of_their_numbers_and_what_people_put_beside_them_stays(tmp_path):
    name = "a [b] *c"  # of the run's folder
    kept = [f"{name}-999999.safetensors", f"{name}-1000000.safetensors", "state-copy.pt", "state-000001 (2).pt"]
    for file in (*kept, f"{name}-000100.safetensors", f".{name}-000100.safetensors.17.tmp"):
        (tmp_path / file).touch()
    keep_latest(tmp_path, ("state-*.pt", f"{name}-*.safetensors"), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    assert saved_states(tmp_path) == []


def test_what_a_killed_process_left_is_removed_at_the_next_save(tmp_path):
    for name in (".state-000001.pt.17.tmp", ".m-000001.safetensors.17.tmp", ".other.tmp", "m.tmp"):
        (tmp_path / name).touch()
    save_state(tmp_path, small_state(2))
    keep_latest(tmp_path, ("state-*.pt", "m-*.safetensors"), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", "m.tmp", "state-000002.pt"]


def test_resuming_with_another_value_names_the_option():
    check_same_facts(Path("a.pt"), {"steps": 5, "ema": None}, {"ema": None, "steps": 5}, {})
    with pytest.raises(ValueError, match=r"--learning-rate is 0\.1, but a\.pt was made with 0\.2"):
        check_same_facts(Path("a.pt"), {"learning_rate": 0.2}, {"learning_rate": 0.1}, {})
    with pytest.raises(ValueError, match="--ema is none"):
        check_same_facts(Path("a.pt"), {"ema": 0.9}, {"ema": None}, {})
    with pytest.raises(ValueError, match="^--accumulation times the number of processes is 1, but .* made with 2"):
        check_same_facts(Path("a.pt"), {"micro_batches": 2}, {"micro_batches": 1}, {})
    with pytest.raises(ValueError, match="--new-option"):
        check_same_facts(Path("a.pt"), {}, {"new_option": 1}, {"new_option": 0})


def test_a_save_of_before_an_option_was_there_can_be_resumed_with_its_default():
    check_same_facts(Path("a.pt"), {"steps": 5}, {"steps": 5, "new_option": 0.5}, {"new_option": 0.5})
    check_same_facts(Path("a.pt"), {"steps": 5, "gone": None, "off": False}, {"steps": 5}, {"new_option": 0.5})
    with pytest.raises(ValueError, match=r"--new-option is 0\.7, but a\.pt was made with 0\.5"):
        check_same_facts(Path("a.pt"), {}, {"new_option": 0.7}, {"new_option": 0.5})


def test_an_option_that_a_save_alone_knows_is_refused_where_it_is_gone_and_passed_over_where_it_is_free():
    check_same_facts(Path("a.pt"), {"steps": 5, "keep": 7}, {"steps": 5}, {"keep": 3})
    with pytest.raises(ValueError, match=r"a\.pt was made with --gone-for-good 3, which there is no more"):
        check_same_facts(Path("a.pt"), {"gone_for_good": 3}, {}, {"keep": 3})
    with pytest.raises(ValueError, match="--videos is b"):
        check_same_facts(Path("a.pt"), {}, {"videos": "b"}, {"keep": 3})


@pytest.mark.parametrize("average", [None, 0.9])
def test_the_state_holds_everything_that_moves(average):
    training = tiny.tiny_training(ema=average)
    tiny.run_steps(training, [1, 2, 3])
    state = state_of(training, {})
    assert (state["ema"] is None) == (average is None)
    assert len(state["optimizer"]["state"]) == len(list(training.inflation.parameters()))
    assert state["weights"].keys() == training.weights.state_dict().keys()
