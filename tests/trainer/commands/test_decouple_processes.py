"""`decouple` with the whole image model on two processes: whole weights on each, divided ones, and a change of both."""

import json
import shutil

import pytest
import tiny_run as tiny
from accelerate.state import AcceleratorState
from stillmotion.trainer.cli import main
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.saves import saved_states
from two_processes import DDP, FSDP

NUMBERS = "--size 64x48 --frames 4 --steps 2 --learning-rate 1e-3 --warm-up 1 --ema 0.9 --save-every 1 --spatial full"
QUIET = "--preview-every none --held-out-every 9 --weighting velocity"
FIRST, LAST = 0, 1


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and a single clip, which every process sees whatever the order."""
    folder = tmp_path_factory.mktemp("decouple")
    tiny.write_base_and_clips(folder, count=1)
    return folder


def words(place, output, *more):
    return tiny.words(place, "decouple", output, *NUMBERS.split(), *QUIET.split(), *more)


@pytest.fixture(scope="module")
def on_two(place, on_two_processes):
    def run(way, output):
        code, said = on_two_processes(way, words(place, output, "--accumulation", "4"))
        assert code == 0, said
        return place / output

    return run


def on_one(place, output, *more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(shared_path, "report_estimate", lambda *_: None)
        AcceleratorState._reset_state(True)
        assert main(words(place, output, *more)) == 0
    return place / output


@pytest.fixture(scope="module")
def one(place):
    return on_one(place, "one", "--accumulation", "8")


@pytest.fixture(scope="module")
def two(on_two):
    return on_two(DDP, "two")


def test_two_processes_equal_one_with_accumulation(one, two):
    """Of the eight micro-batches of a step two are of pictures in either; of one clip, all see the same."""
    assert tiny.largest_difference(tiny.moments(one, FIRST), tiny.moments(two, FIRST)) < 1e-3


def test_divided_weights_equal_whole_ones_and_each_process_holds_half(place, on_two, two):
    divided = on_two(FSDP, "divided")
    assert tiny.largest_difference(tiny.moments(divided, FIRST), tiny.moments(two, FIRST)) < 1e-3
    held = [json.loads((place / f"divided.{rank}.json").read_text()) for rank in range(2)]
    for process in held:
        print(f"of {process['all']:,} numbers: {process['weights']:,} weights, {process['moments']:,} moments")
        assert 0.45 < process["weights"] / process["all"] < 0.55
        assert 0.45 < process["moments"] / process["all"] < 0.55
    assert sum(process["weights"] for process in held) >= held[0]["all"]


def test_a_save_of_two_processes_is_resumed_by_one(place, two):
    """Both take the second step from the first's save."""
    shutil.copytree(two, place / "alone")
    saved_states(place / "alone/saves")[LAST].unlink()
    alone = on_one(place, "alone", "--accumulation", "8", "--resume")
    assert tiny.largest_difference(tiny.moments(alone, LAST), tiny.moments(two, LAST)) < 1e-3
