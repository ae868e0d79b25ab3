"""What several ways to the same end cost, in one run and in turn, so that a change of the machine's speed meets all."""

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch


def randomise(module):
    """Random weights that keep activations finite, without gradients."""
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return module.requires_grad_(False)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(run):
    """On a GPU those that pass; on a CPU those of this process on it, which other load does not count into."""
    if DEVICE.type == "cuda":
        run()  # whoever went before may have sent the models of this one to the CPU
    began = clock()
    run()
    return clock() - began


def clock():
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(run):
    """MB of tensors that a run holds at once beside what was there before, as PyTorch's allocator reports them."""
    if DEVICE.type == "cpu":
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
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return (max(change["Total Allocated"] for change in changes) - before) / 2**20


HEADER = "| frames | | s | / image model | / theirs | MB | / image model | / theirs |\n" + "|---" * 8 + "|"


def print_costs(frames, ways, rounds):
    """A row for each of `ways`, functions by name, of which the first is the image model alone, the second theirs.

    Times are medians, their ratios medians of the ratios of each round; whoever went first goes last in the next round.
    """
    memory = {name: peak_memory(run) for name, run in ways.items()}
    turns = [list(ways.items())[:: -1 if i % 2 else 1] for i in range(rounds)]
    times = [{name: seconds(run) for name, run in turn} for turn in turns]
    for name in ways:
        ratios = [f"{median(t[name] for t in times):.2f}"]
        ratios += [f"{median(t[name] / t[other] for t in times):.2f}" for other in list(ways)[:2]]
        mb = [f"{memory[name]:.0f}", *(f"{memory[name] / memory[other]:.2f}" for other in list(ways)[:2])]
        print(f"| {frames} | {name} | {' | '.join(ratios + mb)} |", flush=True)
