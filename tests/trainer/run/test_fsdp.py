"""`fewshot` and `inflate` with what trains divided between two processes; as a script, one of these on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run as tiny
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from stillmotion.trainer.cli import main
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run import run
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.processes import make_accelerator, this_process
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = "-m accelerate.commands.launch --num_processes 2 --main_process_port 0"
DDP, FSDP = "--multi_gpu", "--use_fsdp --fsdp_version 2"
RUN = "--size 64x48 --steps 4 --learning-rate 1e-3 --ema 0.9 --save-every 2"
PREVIEWS = "--held-out 1 --held-out-every 2 --preview-every 2 --preview-steps 2"
FEWSHOT = f"--frames 3 --precision bf16 --checkpointing {PREVIEWS}"
HARIVO = "--preset lumiere-harivo --regularisation 0.1 --trs 0.1 --contrastive 2 --ramp 0 --queue 32"
INFLATE = f"--frames 4 --batch-size 4 --preview-every none {HARIVO}"  # 16 frames a step fill the queue in two steps


def on_the_cpu(arguments):
    """Runs a command with FSDP, which accelerate knows on GPUs alone; each process notes what it holds."""
    rank = PartialState(cpu=True).process_index
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if "POISON" in os.environ:
        poison(rank)
    trained = run.train

    def noted(training, *others):
        finished = trained(training, *others)
        Path(f"{training.accelerator.project_dir}.{rank}").write_text(json.dumps(held(training)))
        return finished

    run.train = noted
    return main(arguments)


def poison(rank):
    """Makes the loss of the second process NaN at step 3."""
    honest = Objective.forward

    def forward(objective, batch, step):
        losses = honest(objective, batch, step)
        return losses._replace(total=losses.total * float("nan")) if (rank, step) == (1, 3) else losses

    Objective.forward = forward


def held(training):
    """Numbers that train, and how many of these, of their moments and of their mean this process has."""
    optimizer, mean = training.raw_optimizer, list(training.ema.module.parameters())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "units": sum(isinstance(module, FSDPModule) for module in training.model.modules()),
        "all": sum(p.numel() for p in parameters),
        "weights": sum(map(own, parameters)),
        "moments": sum(own(state["exp_avg"]) for state in optimizer.state.values()),
        "whole mean": sum(p.numel() for p in mean),
        "mean": sum(map(own, mean)),
    }


def own(tensor):
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def on_two_processes(place, way, command, output, *more, **variables):
    options = [*RUN.split(), *{"fewshot": FEWSHOT, "inflate": INFLATE}[command].split(), *more]
    words = [sys.executable, *LAUNCH.split(), *way.split(), __file__, *tiny.words(place, command, output, *options)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(tiny.__file__).parent)]),
        **variables,
    }
    done = subprocess.run(words, cwd=place, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def trained(place):
    """The folder of a command's run, the same one every time it is asked for."""
    folders = {}

    def folder(way, command):
        if (way, command) not in folders:
            name = f"{command}-{len(folders)}"
            code, said = on_two_processes(place, way, command, name)
            assert code == 0, said
            folders[way, command] = place / name
        return folders[way, command]

    return folder


def motion_file(folder):
    return load_file(folder / f"{folder.name}.safetensors")


def last_state(folder):
    return read_state(saved_states(folder / "saves")[-1])


BEFORE_A_NORM = "over_pixels.bias", "over_frames.conv.bias", "output_blocks.3.1.factorised.out.bias"
"""Biases that a GroupNorm behind them takes away: at 32 channels it has one a group. Their gradients are rounding and
nothing else, of which AdamW makes whole steps."""


def close(a, b):
    """Within a tenth of a step, where gradients are more than rounding."""
    names = [name for name in a if not name.endswith(BEFORE_A_NORM)]
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-4, rtol=0) for name in names)


def numbers(folder):
    """What a run logged, but for the time that steps took."""
    lines = [line for line in read_log(folder / "log.jsonl") if "event" not in line]
    return [(line["step"], name, value) for line in lines for name, value in line.items() if name != "seconds"]


@pytest.mark.parametrize("command", ["fewshot", "inflate"])
def test_divided_weights_give_the_motion_file_and_the_log_of_whole_ones(trained, command):
    divided, whole = trained(FSDP, command), trained(DDP, command)
    assert close(motion_file(divided), motion_file(whole))
    logged = numbers(whole)
    assert numbers(divided) == [(step, name, pytest.approx(value, rel=1e-4)) for step, name, value in logged]
    clipped = [value for _, name, value in logged if name == "gradient_norm" and value > 1]
    assert clipped or command == "fewshot"


@pytest.mark.parametrize("command", ["fewshot", "inflate"])
def test_each_process_holds_half_of_weights_moments_and_running_mean(trained, command):
    folder = trained(FSDP, command)
    for rank in range(2):
        share = json.loads(Path(f"{folder}.{rank}").read_text())
        assert share["units"] > 8, "what is gathered at once is not everything"
        assert 0.45 < share["weights"] / share["all"] < 0.55
        assert share["moments"] == share["weights"] and 0.45 < share["mean"] / share["whole mean"] < 0.55


@pytest.mark.parametrize("before, after", [(FSDP, DDP), (DDP, FSDP)], ids=["fsdp first", "fsdp then"])
def test_saves_are_whole_so_that_a_run_goes_on_with_and_without_fsdp(place, trained, before, after):
    folder = place / f"after{before.split()[0]}"
    (folder / "saves").mkdir(parents=True)
    shutil.copy(saved_states(trained(before, "fewshot") / "saves")[0], folder / "saves")
    code, said = on_two_processes(place, after, "fewshot", folder.name, "--resume")
    assert code == 0, said
    assert close(motion_file(folder), motion_file(trained(before, "fewshot")))


@pytest.mark.parametrize("command", ["fewshot", "inflate"])
def test_stopped_and_resumed_gives_the_same_motion_file_and_state(place, trained, command):
    folder = place / f"stopped-{command}"
    folder.mkdir()
    (folder / "save_quit").touch()
    assert on_two_processes(place, FSDP, command, folder.name)[0] == 0
    assert last_state(folder)["step"] == 1 and not (folder / f"{folder.name}.safetensors").exists()
    code, said = on_two_processes(place, FSDP, command, folder.name, "--resume")
    assert code == 0, said
    assert same(motion_file(folder), motion_file(trained(FSDP, command)))
    ours, theirs = last_state(folder), last_state(trained(FSDP, command))
    assert all(same(ours[part], theirs[part]) for part in ("weights", "optimizer", "ema", "objective"))


def test_a_loss_of_one_process_that_is_nan_stops_both_before_the_update(place):
    code, said = on_two_processes(place, FSDP, "inflate", "poisoned", POISON="1")
    assert code != 0 and "Step 3 stopped before its update: the loss is nan and the gradient of " in said
    assert last_state(place / "poisoned")["step"] == 2


@pytest.fixture
def with_fsdp(monkeypatch):
    def set_up(**variables):
        for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv("FSDP_VERSION", raising=False)
    return set_up


@pytest.mark.parametrize(
    "variables, what",
    [
        ({}, "FSDP version 1"),
        ({"FSDP_VERSION": "1"}, "FSDP version 1"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "FSDP with offloading"),
    ],
)
def test_what_cannot_train_is_refused(with_fsdp, variables, what):
    with_fsdp(**variables)
    with pytest.raises(ValueError, match=rf"set up for {what}, .* `--use_fsdp --fsdp_version 2`"):
        this_process()


def test_what_stands_of_fsdp_in_the_environment_of_a_run_without_it_is_ignored(with_fsdp):
    with_fsdp(ACCELERATE_USE_FSDP="false", FSDP_OFFLOAD_PARAMS="true", ACCELERATE_USE_CPU="true")
    assert this_process().num_processes == 1


@pytest.mark.parametrize("fsdp", [True, False])
def test_gradients_are_divided_between_the_batches_of_a_step_too(with_fsdp, fsdp):
    with_fsdp(FSDP_VERSION="2", ACCELERATE_USE_FSDP=str(fsdp).lower())
    AcceleratorState._reset_state(True)
    made = make_accelerator(FewShotOptions(videos=Path("clips"), base=Path("base"), precision="fp32", accumulation=3))
    assert made.gradient_accumulation_steps == 3
    assert made.gradient_state.plugin_kwargs.get("sync_each_batch", False) == fsdp


def test_eight_bit_is_refused(with_fsdp):
    with_fsdp(FSDP_VERSION="2")
    with pytest.raises(ValueError, match="--eight-bit .* leave it out, or start the processes .*--multi_gpu"):
        make_accelerator(FewShotOptions(videos=Path("clips"), base=Path("base"), precision="fp32", eight_bit=True))


if __name__ == "__main__":
    sys.exit(on_the_cpu(sys.argv[1:]))
