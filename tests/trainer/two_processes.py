"""Two processes on the CPU that run the trainer's commands one after another; as a script, one of the two.

Starting them costs more than the commands that tests run on them. They are started as docs/training.md says, and live
as long as the tests.
"""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = "-m accelerate.commands.launch --num_processes 2 --main_process_port 0"
DDP, FSDP = "--multi_gpu", "--use_fsdp --fsdp_version 2"
LIMIT = 500  # seconds for one command, and the start before the first


class Pair:
    """Two processes that share the work in one way."""

    def __init__(self, way, folder):
        self.folder, self.asked, self.log = folder, 0, folder / "log.txt"
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
        }
        command = [sys.executable, *LAUNCH.split(), *way.split(), __file__, str(folder), str(os.getpid())]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)

    def run(self, words, poison=False, estimate=False):
        """Runs a command on both; returns its exit code and what the first process said.

        The loss of the third step can be NaN in one of them. An estimate takes as long as what tests train, and is left
        out unless asked for.
        """
        name, self.asked = f"{self.asked}", self.asked + 1
        write(self.folder / f"{name}.json", {"words": words, "poison": poison, "estimate": estimate})
        answers = [self.folder / f"{name}.{rank}.json" for rank in range(2)]
        deadline = time.monotonic() + LIMIT
        while not all(path.exists() for path in answers):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        (code, said), (other, _) = (json.loads(path.read_text()) for path in answers)
        return code or other, said

    def stop(self):
        write(self.folder / f"{self.asked}.json", None)
        self.process.wait(LIMIT)


def write(path, content):
    """Writes a file that is there only when it is whole."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content))
    beside.rename(path)


def serve(folder, parent):
    """Runs what is asked for, in order, until the tests are over."""
    rank = os.environ["RANK"]
    for number in itertools.count():
        while not (job := folder / f"{number}.json").exists():
            os.kill(parent, 0)  # raises where it has gone
            time.sleep(0.05)
        if (asked := json.loads(job.read_text())) is None:
            return
        write(folder / f"{number}.{rank}.json", run(**asked))


def run(words, poison, estimate):
    import accelerate.state
    from stillmotion.trainer.cli import main
    from stillmotion.trainer.run import run as shared_path

    accelerate.state.AcceleratorState._reset_state(True)
    process = accelerate.state.PartialState(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # which accelerate knows on GPUs alone
        process._shared_state["distributed_type"] = accelerate.utils.DistributedType.MULTI_GPU
    with contextlib.ExitStack() as changes:
        said = changes.enter_context(contextlib.redirect_stderr(io.StringIO()))
        changes.enter_context(noting(f"{words[words.index('--output') + 1]}.{process.process_index}"))
        if poison and process.process_index == 1:
            changes.enter_context(poisoned())
        if not estimate:
            changes.enter_context(replaced(shared_path, "report_estimate", lambda *_: None))
        code = main(words)
    return code, said.getvalue()


@contextlib.contextmanager
def replaced(place, name, value):
    before = getattr(place, name)
    setattr(place, name, value)
    yield
    setattr(place, name, before)


@contextlib.contextmanager
def noting(beginning):
    """Each process writes what it holds when trained, and the names of the clips of a set, beside the run's folder."""
    from stillmotion.trainer.clips.stream import ClipStream
    from stillmotion.trainer.run import run

    train, following = run.train, ClipStream.__next__

    def trained(training, *others):
        finished = train(training, *others)
        Path(f"{beginning}.json").write_text(json.dumps(held(training)))
        return finished

    def noted(stream):
        clip = following(stream)
        with Path(f"{beginning}.clips").open("a") as file:
            file.write(f"{clip.name}\n")
        return clip

    with replaced(run, "train", trained), replaced(ClipStream, "__next__", noted):
        yield


def poisoned():
    """Makes the loss NaN at step 3."""
    from stillmotion.trainer.losses.objective import Objective

    honest = Objective.forward

    def forward(objective, batch, step):
        losses = honest(objective, batch, step)
        return losses._replace(total=losses.total * float("nan")) if step == 3 else losses

    return replaced(Objective, "forward", forward)


def held(training):
    """Numbers that train, and how many of these, of their moments and of their mean this process has."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    def own(tensor):
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()

    optimizer, mean = training.raw_optimizer, list(training.ema.module.parameters()) if training.ema else []
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "units": sum(isinstance(module, FSDPModule) for module in training.model.modules()),
        "all": sum(p.numel() for p in parameters),
        "weights": sum(map(own, parameters)),
        "moments": sum(own(state["exp_avg"]) for state in optimizer.state.values()),
        "whole mean": sum(p.numel() for p in mean),
        "mean": sum(map(own, mean)),
    }


def main():
    import torch.distributed

    torch.distributed.destroy_process_group = lambda *_: None  # which the next run needs
    serve(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
