"""`condition` on two processes learns what one does with as many micro-batches."""

import pytest
import tiny_run as tiny
from accelerate.state import AcceleratorState
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from two_processes import DDP

NUMBERS = "--size 64x48 --frames 4 --steps 1 --save-every 1 --learning-rate 1e-3 --warm-up 1 --ema 0.9"
QUIET = "--preview-every none --held-out-every 9 --text-to-video 0.5"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and a single clip, which every process sees whatever the order."""
    folder = tmp_path_factory.mktemp("condition")
    tiny.write_base_and_clips(folder, count=1)
    return folder


def test_two_processes_learn_as_one_with_accumulation(place, on_two_processes, monkeypatch):
    words = tiny.words(place, "condition", "two", *NUMBERS.split(), *QUIET.split())
    code, said = on_two_processes(DDP, words)
    assert code == 0, said
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)
    AcceleratorState._reset_state(True)
    assert main(tiny.words(place, "condition", "one", *NUMBERS.split(), *QUIET.split(), "--accumulation", "2")) == 0
    assert tiny.largest_difference(tiny.moments(place / "two", 0), tiny.moments(place / "one", 0)) < 1e-3
