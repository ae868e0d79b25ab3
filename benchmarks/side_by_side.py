"""Time several ways to the same end side by side, and their peak memory.

All ways run in each round, and the order is reversed from round to round, so that a change of the machine's speed meets
all of them. Ratios are taken within a round.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Costs:
    """Seconds and peak memory of each way, by its name."""

    rounds: list[dict[str, float]]  # seconds
    memory: dict[str, float]  # MiB

    def seconds(self, name):
        """Return the median of all rounds."""
        return median(times[name] for times in self.rounds)

    def ratios(self, name, to):
        """Return the seconds of `name` over those of `to`: the median over the rounds, the smallest, the largest."""
        ratios = [times[name] / times[to] for times in self.rounds]
        return median(ratios), min(ratios), max(ratios)


def measure(ways, rounds, device=DEVICE):
    """Run `ways`, functions of no arguments by name, in turn. Each runs once more before, for its memory."""
    memory = {name: peak_memory(run, device) for name, run in ways.items()}
    turns = [list(ways.items())[:: -1 if i % 2 else 1] for i in range(rounds)]
    return Costs([{name: seconds(run, device) for name, run in turn} for turn in turns], memory)


def seconds(run, device):
    """Time one run: CPU seconds of this process, which other load does not count into; on a GPU, wall seconds."""
    if device.type == "cuda":
        run()  # whoever went before may have sent the models of this one to the CPU
    began = clock(device)
    run()
    return clock(device) - began


def clock(device):
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(run, device=DEVICE):
    """Return the MiB of tensors that a run holds at once beside what was there before, by PyTorch's allocator."""
    if device.type == "cpu":
        return peak_memory_on_cpu(run)
    run()  # once before: kernels take room of their own, and the host loads models
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_memory_on_cpu(run):
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_bytes())["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"] if changes else 0
    return (max((change["Total Allocated"] for change in changes), default=0) - before) / 2**20


def print_header(*references):
    """Print the head of a table whose rows `print_costs` prints, with a column of ratios to each of `references`."""
    columns = ["", "", "s", *(f"/ {name}" for name in references), "peak MiB", *(f"/ {name}" for name in references)]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")


def print_costs(label, costs, *references):
    """Print a row for each way: seconds, ratios of time to `references` with their range, MiB, ratios of memory."""
    for name in costs.memory:
        times = ["{:.2f} ({:.2f} to {:.2f})".format(*costs.ratios(name, to)) for to in references]
        memory = [f"{costs.memory[name] / costs.memory[to]:.2f}" if costs.memory[to] else "" for to in references]
        row = [label, name, f"{costs.seconds(name):.3g}", *times, f"{costs.memory[name]:.1f}", *memory]
        print(f"| {' | '.join(row)} |", flush=True)
