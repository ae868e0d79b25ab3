"""Files that are whole or not there, whatever happens to the process that writes them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stillmotion.networks.atomic import remove_unfinished, replacing, write_bytes

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = b"old " * 1000, b"new " * 1000
KILLED = """
import os, signal, sys
from pathlib import Path
from stillmotion.networks.atomic import replacing

with replacing(Path(sys.argv[1])) as beside:
    beside.write_bytes(b"new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path):
    write_bytes(tmp_path / "runs" / "file [1].bin", OLD)
    return tmp_path / "runs" / "file [1].bin"


def names(path):
    return sorted(os.listdir(path.parent))


def test_a_file_is_replaced_at_once_and_leaves_nothing_beside_it(path):
    with replacing(path) as beside:
        beside.write_bytes(NEW)
        assert path.read_bytes() == OLD and beside.parent == path.parent, "a rename works on one disk alone"
    assert path.read_bytes() == NEW and names(path) == [path.name]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_beside_it(path, error):
    with pytest.raises(error), replacing(path) as beside:
        beside.write_bytes(NEW)
        raise error("reads back differently")
    assert path.read_bytes() == OLD and names(path) == [path.name]


def test_two_that_write_the_same_file_do_not_meet(path):
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(NEW)
        second.write_bytes(OLD)
        assert first != second and first.read_bytes() == NEW
    assert path.read_bytes() == NEW and names(path) == [path.name]


def test_what_a_killed_process_left_is_found_by_its_name_and_nothing_else_is_touched(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    (path.parent / ".other.bin.1.tmp").touch()
    (left,) = set(names(path)) - {path.name, ".other.bin.1.tmp"}
    assert left.startswith(f".{path.name}.") and path.read_bytes() == OLD
    remove_unfinished(path.parent, "file *.bin")
    assert names(path) == [".other.bin.1.tmp", path.name] and path.read_bytes() == OLD


def test_there_is_one_way_to_write_durably():
    ours = [file for folder in ("networks", "samplers", "nodes", "trainer") for file in (ROOT / folder).rglob("*.py")]
    words = "os.replace(", "os.rename(", "fsync(", "NamedTemporaryFile", "mkstemp"
    using = {file.name for file in ours if any(word in file.read_text(encoding="utf-8") for word in words)}
    assert using == {"atomic.py"}
