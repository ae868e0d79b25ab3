"""The helper that times benchmarks, on a clock that moves only when a run moves it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "side_by_side.py"


@pytest.fixture
def side_by_side():
    """Loaded anew, from a folder that is no package."""
    spec = importlib.util.spec_from_file_location("side_by_side_under_test", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # its dataclass asks for it
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def measured(side_by_side, monkeypatch):
    """Runs two ways with the seconds that they are to take, and tells in which order they were timed."""

    def measure(**seconds):
        now, order, turns = [0.0], [], {name: iter(taken) for name, taken in seconds.items()}

        def run(name):
            order.append(name)
            now[0] += next(turns[name])

        monkeypatch.setattr(side_by_side, "clock", lambda device: now[0])
        monkeypatch.setattr(side_by_side, "peak_memory", lambda run, device: {"a": 4.0, "b": 6.0}[run.name])
        ways = {name: type("Way", (), {"name": name, "__call__": lambda self: run(self.name)})() for name in seconds}
        return side_by_side.measure(ways, len(seconds["a"]), torch.device("cpu")), order

    return measure


def test_whoever_went_first_goes_last_in_the_next_round(measured):
    _, order = measured(a=[1, 1, 1], b=[1, 1, 1])
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_a_ratio_is_the_median_of_those_within_rounds_with_their_range(measured):
    """The second round ran on a machine ten times slower: medians of the times would give 6 / 2."""
    costs, _ = measured(a=[1, 20, 2], b=[2, 30, 6])
    assert (costs.seconds("a"), costs.seconds("b")) == (2, 6)
    assert costs.ratios("b", "a") == (2, 1.5, 3)
    assert costs.ratios("a", "a") == (1, 1, 1)


def test_a_table_has_times_and_memory_beside_their_reference(side_by_side, measured, capsys):
    costs, _ = measured(a=[1, 20, 2], b=[2, 30, 6])
    side_by_side.print_header("a")
    side_by_side.print_costs("3 frames", costs, "a")
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert rows == [
        "| 3 frames | a | 2 | 1.00 (1.00 to 1.00) | 4.0 | 1.00 |",
        "| 3 frames | b | 6 | 2.00 (1.50 to 3.00) | 6.0 | 1.50 |",
    ]
