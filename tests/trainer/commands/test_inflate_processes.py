"""The whole `inflate` command on two processes and tar shards."""

import shutil
import tarfile
from types import SimpleNamespace

import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.stream import ClipStream
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run import training_set
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.processes import this_process
from stillmotion.trainer.run.run import check_together
from stillmotion.trainer.run.saves import saved_states
from two_processes import DDP

NUMBERS = "--size 64x48 --frames 4 --steps 4 --learning-rate 1e-3 --ema none --save-every 2 --preview-every none"
HARIVO = "--preset lumiere-harivo --regularisation 0.1 --trs 0.1 --contrastive 0.1 --ramp 0 --queue 32"
FOUR = "--batch-size 4"  # 16 frames a step of two processes fill the queue in two steps


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, and four clips, each in a tar file."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.write_base_and_clips(folder, count=4)
    for clip in range(4):
        with tarfile.open(folder / f"{clip}.tar", "w") as tar:
            for name in (f"{clip}.gif", f"{clip}.txt"):
                tar.add(folder / "clips" / name, name)
    return folder


def words(place, output, *more):
    options = [*NUMBERS.split(), *HARIVO.split(), *FOUR.split(), *more]
    return tiny.words(place, "inflate", output, *options, videos="{0..3}.tar")


@pytest.fixture(scope="module")
def train(place, on_two_processes):
    """Trains on two processes, and gives the motion file, None where it was stopped before."""

    def train(output, *more):
        code, said = on_two_processes(DDP, words(place, output, *more))
        assert code == 0, said
        return load_file(file) if (file := place / output / f"{output}.safetensors").exists() else None

    return train


@pytest.fixture(scope="module")
def two(train):
    """The motion file of a run on two processes."""
    return train("two")


def seen(place, output):
    """Names of the clips that each of the two processes trained on, in their order."""
    return [(place / f"{output}.{rank}.clips").read_text().split() for rank in range(2)]


def test_no_clip_is_seen_by_both_in_an_epoch(place, two):
    first, second = seen(place, "two")
    assert len(first) == len(second) == 16
    everything = [f"{clip}.tar/{clip}.gif" for clip in range(4)]
    epochs = [(first[k : k + 2], second[k : k + 2]) for k in range(0, 16, 2)]
    assert all(sorted(one + other) == everything for one, other in epochs)
    assert len({tuple(one) for one, _ in epochs}) > 2, "each epoch deals them anew"


def test_only_the_first_process_writes(place, two):
    files = sorted(path.relative_to(place / "two").as_posix() for path in (place / "two").rglob("*") if path.is_file())
    assert [name for name in files if "tfevents" not in name] == [
        ".lock",
        "clips.png",
        "log.jsonl",
        "options.toml",
        *(f"saves/state-00000{step}.pt" for step in (2, 4)),
        *(f"saves/two-00000{step}.safetensors" for step in (2, 4)),
        "two.safetensors",
        "two_workflow.json",
    ]
    assert len(list((place / "two").rglob("*tfevents*"))) == 1


def test_stopped_by_a_file_and_resumed_gives_the_same_motion_file_of_the_same_clips(place, train, two):
    (place / "stopped").mkdir()
    (place / "stopped/save_quit").touch()
    assert train("stopped") is None
    assert read_state(saved_states(place / "stopped/saves")[-1])["positions"] == [[4], [4]]
    assert same(train("stopped", "--resume"), two)
    assert seen(place, "stopped") == seen(place, "two")
    ours, theirs = (read_state(saved_states(place / name / "saves")[-1]) for name in ("stopped", "two"))
    assert same(ours["objective"], theirs["objective"]) and ours["positions"] == [[16], [16]]


def test_processes_that_found_different_saves_are_refused():
    training = SimpleNamespace(
        step=4, accelerator=SimpleNamespace(device="cpu", gather=lambda t: torch.cat([t, 0 * t]))
    )
    with pytest.raises(
        ValueError, match=r"at steps \[0, 4\]: --output here must be one folder that all machines share"
    ):
        check_together(SimpleNamespace(output="here"), training)


def test_another_number_of_processes_goes_on_where_steps_stay_as_large(place, two, monkeypatch, capsys, caplog):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)
    shutil.copytree(place / "two", place / "alone")
    for path in sorted((place / "alone/saves").iterdir()):
        path.rename(path.with_name(path.name.replace("two-", "alone-")))
    saved_states(place / "alone/saves")[-1].unlink()
    AcceleratorState._reset_state(True)
    assert main(words(place, "alone", "--resume")) == 2
    assert "--accumulation times the number of processes is 1, but" in capsys.readouterr().err
    AcceleratorState._reset_state(True)
    assert main(words(place, "alone", "--resume", "--accumulation", "2")) == 0
    assert "ran on 2 processes and goes on with 1" in caplog.text
    assert read_state(saved_states(place / "alone/saves")[-1])["positions"] == [[32]]


class Both:
    """The streams of two processes, a batch of four from each in turn."""

    def __init__(self, *arguments, rank, world, **options):
        self.streams = [ClipStream(*arguments, rank=rank, world=2, **options) for rank in range(2)]
        self.position = 0

    def __next__(self):
        self.position += 1
        return next(self.streams[(self.position - 1) // 4 % 2])


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.fixture
def on_one_process(place, monkeypatch):
    def run(output, stream):
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)
        monkeypatch.setattr(training_set, "ClipStream", stream)
        AcceleratorState._reset_state(True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as each of the two has
        assert main(words(place, output, "--accumulation", "2")) == 0
        torch.set_num_threads(threads)
        return load_file(place / output / f"{output}.safetensors")

    return run


def test_two_processes_give_the_file_of_one_with_accumulation_where_that_sees_the_same_clips(two, on_one_process):
    """A process alone goes through all shards in an order of its own; given the clips of the two, it is as good."""
    assert largest_difference(two, on_one_process("same", Both)) < 1e-5
    assert largest_difference(two, on_one_process("own", ClipStream)) > 1e-4


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_divided_among_processes_is_refused(monkeypatch, way):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(ValueError, match=r"accelerate is set up for .*, .* `accelerate launch --multi_gpu` \(DDP\)"):
        this_process()
