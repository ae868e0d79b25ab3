"""The whole `fewshot` command on two processes, started as docs/training.md says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.processes import this_process
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from two_processes import DDP

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 -m trainer"
NUMBERS = "--size 64x48 --frames 3 --steps 4 --learning-rate 1e-3 --ema none --held-out 1 --held-out-every 2"
LOOKS = "--appearance lora --appearance-rank 2 --debias 0.5"
MILESTONES = "--save-every 2 --preview-every 2 --preview-steps 2"


def words(place, output, *more):
    return tiny.words(place, "fewshot", output, *NUMBERS.split(), *LOOKS.split(), *MILESTONES.split(), *more)


@pytest.fixture(scope="module")
def two(place):
    """The folder of a run on two processes, its own, with the command as it is typed."""
    command = [sys.executable, *LAUNCH.split(), *words(place, "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return place / "two"


def on_one_process(place, output, *more):
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(shared_path, "report_estimate", lambda *_: None)
        AcceleratorState._reset_state(True)
        torch.set_num_threads(1)  # as each of the two has
        assert main(words(place, output, *more)) == 0
        torch.set_num_threads(threads)
    return files_of(place / output)


def files_of(folder):
    """The tensors of the motion file and of the LoRA of looks."""
    ends = ("", "_lora")
    return {f"{n}{end}": t for end in ends for n, t in load_file(folder / f"{folder.name}{end}.safetensors").items()}


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def losses(folder):
    return [line["loss"] for line in read_log(folder / "log.jsonl") if "loss" in line]


def test_two_processes_give_the_files_of_one_with_accumulation(place, two):
    assert largest_difference(files_of(two), on_one_process(place, "one", "--accumulation", "2")) < 1e-5
    assert losses(place / "one") == pytest.approx(losses(two), abs=1e-5)
    assert largest_difference(files_of(two), on_one_process(place, "half", "--accumulation", "1")) > 1e-3


def test_only_the_first_process_writes(two):
    lines = read_log(two / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["event"] for line in lines if "event" in line] == ["start", "export"]
    names = sorted(path.relative_to(two).as_posix() for path in two.rglob("*") if path.is_file())
    assert [name for name in names if "tfevents" not in name] == [
        ".lock",
        "clips.png",
        "log.jsonl",
        "options.toml",
        *(f"previews/step-00000{step}.{kind}" for step in (2, 4) for kind in ("png", "webp")),
        *(f"saves/state-00000{step}.pt" for step in (2, 4)),
        *(f"saves/two-00000{step}.safetensors" for step in (2, 4)),
        "two.safetensors",
        "two_lora.safetensors",
        "two_workflow.json",
    ]
    assert len(list(two.rglob("*tfevents*"))) == 1


def test_stopped_by_a_file_and_resumed_gives_the_same_files(place, two, on_two_processes):
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert on_two_processes(DDP, words(place, "stopped"))[0] == 0
    assert [read_state(path)["step"] for path in saved_states(place / "stopped/saves")] == [1]
    assert not (place / "stopped/stopped.safetensors").exists()
    code, said = on_two_processes(DDP, words(place, "stopped", "--resume"))
    assert code == 0, said
    assert same(files_of(place / "stopped"), files_of(two))


def test_processes_that_would_each_train_alone_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="2 processes were started and found no GPUs .* ACCELERATE_USE_CPU=true"):
        this_process()
