"""One run in a folder at a time."""

import os
import signal
import subprocess
import sys

import pytest
from stillmotion.trainer.run.lock import check_unlocked, locked

HOLD = """
import sys, time
from pathlib import Path
from stillmotion.trainer.run.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that is in a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, other):
    for attempt in (locked(tmp_path / "run").__enter__, lambda: check_unlocked(tmp_path / "run")):
        with pytest.raises(ValueError, match=r"--output .*run is in use by another run: wait until it is done"):
            attempt()
    other.send_signal(signal.SIGKILL)
    other.wait()
    check_unlocked(tmp_path / "run")
    with locked(tmp_path / "run"):
        pass


def test_the_processes_of_one_launch_share_it(tmp_path, monkeypatch):
    with locked(tmp_path):
        monkeypatch.setitem(os.environ, "RANK", "1")
        with locked(tmp_path):
            pass
        monkeypatch.setitem(os.environ, "RANK", "0")
        with pytest.raises(ValueError, match="in use"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_nothing_is_made_to_see_whether_a_folder_is_free(tmp_path):
    check_unlocked(tmp_path / "none")
    assert not (tmp_path / "none").exists()
