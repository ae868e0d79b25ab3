"""The log of a run that is resumed."""

import os
from types import SimpleNamespace

import pytest
from stillmotion.trainer.run.runlog import RunLog, read_log


@pytest.fixture
def accelerator():
    return SimpleNamespace(is_main_process=True, log=lambda values, step: None)


@pytest.fixture
def folder(tmp_path, accelerator):
    log = RunLog(tmp_path, accelerator, 0)
    for step in range(1, 6):
        log.numbers(step, loss=float("nan") if step == 2 else 1.0)
    return tmp_path


def steps(folder):
    return [line["step"] for line in read_log(folder / "log.jsonl")]


def test_a_resumed_run_forgets_what_came_after_its_save_and_a_new_one_everything(folder, accelerator):
    RunLog(folder, accelerator, 3).numbers(4, loss=0.5)
    assert steps(folder) == [1, 2, 3, 4]
    assert [line["loss"] for line in read_log(folder / "log.jsonl")] == [1.0, "nan", 1.0, 0.5]
    RunLog(folder, accelerator, 0)
    assert steps(folder) == []


def test_a_full_disk_takes_no_line_of_the_log_away(folder, accelerator, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="The disk is full"):
        RunLog(folder, accelerator, 3)
    assert steps(folder) == [1, 2, 3, 4, 5] and os.listdir(folder) == ["log.jsonl"]
