"""Progress on a terminal and in a log, with the pauses made short."""

import io
import logging
import re
import sys
import time
from contextlib import redirect_stderr

import pytest
from stillmotion.trainer.show import progress
from stillmotion.trainer.show.progress import counted, working


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal inside of a `with`: pytest would take back what a fixture puts there."""
    monkeypatch.setattr(progress, "REDRAWN", 0.02)
    return lambda: redirect_stderr(Terminal())


@pytest.fixture
def log_file(monkeypatch, caplog):
    """The lines of a log, whose pauses are 0.05 s at first and ten times as long each time."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "MORE_RARELY", 10)
    caplog.set_level(logging.INFO, "stillmotion")
    return caplog


def test_a_bar_goes_on_moving_while_a_step_takes_long(terminal):
    with terminal() as shown, working("training", 3, "step") as bar:
        bar.update()
        time.sleep(0.3)
    assert shown.getvalue().count("1/3") > 3 and "training" in shown.getvalue()
    assert shown.getvalue().rstrip(" ").endswith("\r"), "and is taken away"


def test_what_is_quick_is_not_seen(terminal, monkeypatch):
    monkeypatch.setattr(progress, "REDRAWN", 60)  # a busy machine is not quick
    with terminal() as shown, working("encoding", 3, "frame") as bar:
        bar.update(3)
    assert shown.getvalue().strip() == ""


def test_a_log_file_gets_few_lines_with_what_is_left(log_file, capsys):
    with working("training", 1000, "step", initial=10, leave=True) as bar:
        for _ in counted(range(990), bar):
            time.sleep(0.0003)
    first, *_, last = log_file.messages
    assert len(log_file.messages) <= 3 and "of 1000 steps in 00:00, about 00:" in first
    assert last.startswith("training: 1000 of 1000 steps in ") and capsys.readouterr().err == ""


def test_work_of_one_piece_is_not_silent(log_file):
    with working("loading"):
        time.sleep(0.2)
    assert log_file.messages == ["loading: 00:00"]


def test_what_is_quick_leaves_no_line_and_what_has_no_end_counts(log_file, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 60)
    with working("loading"):
        pass
    assert not log_file.messages
    with working("reading clips", unit="clip", leave=True) as bar:
        bar.update(7)
    assert log_file.messages == ["reading clips: 7 clips in 00:00"]


def test_nothing_goes_on_talking_after_an_error(log_file):
    with pytest.raises(ValueError):
        with working("loading"):
            raise ValueError
    time.sleep(0.1)
    assert not log_file.messages


def test_a_log_message_does_not_break_the_bar(terminal, monkeypatch):
    with terminal() as shown:
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
        with working("training", 3, "step", leave=True):
            logging.getLogger("stillmotion").warning("a clip is left out")
    assert re.search("0/3 .*\r *\ra clip is left out\n\rtraining: ", shown.getvalue())


def test_a_terminal_obeys_no_name_of_a_file(terminal):
    with terminal() as shown, working("encoding \x1b]0;title\x07\n" + 500 * "x", 2, "frame", leave=True):
        pass
    assert "encoding \\x1b]0;title" in shown.getvalue() and "\x07" not in shown.getvalue()
    assert 70 * "x" not in shown.getvalue()


@pytest.mark.parametrize("process", [0, 1])
def test_hidden_is_silent_and_so_are_further_processes(log_file, terminal, monkeypatch, process):
    monkeypatch.setenv("RANK", str(process))
    with terminal() as shown, working("training", 3, "step", leave=True, hidden=not process) as bar:
        bar.update()
    assert shown.getvalue() == "" and not log_file.messages
