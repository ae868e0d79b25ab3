"""`condition` on two processes learns what one does with as many micro-batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run as tiny
from accelerate.state import AcceleratorState
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = "-m accelerate.commands.launch --num_processes 2 --main_process_port 0 --multi_gpu -m stillmotion.trainer"
NUMBERS = "--size 64x48 --frames 4 --steps 1 --save-every 1 --learning-rate 1e-3 --warm-up 1 --ema 0.9"
QUIET = "--preview-every none --held-out-every 9 --text-to-video 0.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and a single clip, which every process sees whatever the order."""
    folder = tmp_path_factory.mktemp("condition")
    tiny.write_base_and_clips(folder, count=1)
    return folder


def test_two_processes_learn_as_one_with_accumulation(place, monkeypatch):
    words = tiny.words(place, "condition", "two", *NUMBERS.split(), *QUIET.split())
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCH.split(), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)
    AcceleratorState._reset_state(True)
    assert main(tiny.words(place, "condition", "one", *NUMBERS.split(), *QUIET.split(), "--accumulation", "2")) == 0
    assert tiny.largest_difference(tiny.moments(place / "two", 0), tiny.moments(place / "one", 0)) < 1e-3
