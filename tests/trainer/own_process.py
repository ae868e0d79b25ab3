"""Processes of their own, for what is killed or stopped: forked from one that has imported the libraries already."""

import multiprocessing
import os
import sys
from pathlib import Path

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"stillmotion.trainer.commands.{name}" for name in ("fewshot", "inflate", "convert")])


def start(function, *arguments):
    """Starts a function of a module, on the CPU; what it returns is the exit code."""
    process = CONTEXT.Process(target=_run, args=(torch.get_num_threads(), function, arguments))
    process.start()
    return process


def _run(threads, function, arguments):
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(threads)  # numbers are those of the process that asks
    sys.exit(function(*arguments))


def command(arguments):
    """Runs a command of the trainer without its estimate, which takes longer than a run of a test."""
    from stillmotion.trainer.cli import main
    from stillmotion.trainer.run import run

    run.report_estimate = lambda *_: None
    return main(arguments)


def command_with_peak(arguments, sender):
    """Runs a command of the trainer, and sends by how many bytes the memory of its process grew."""
    from stillmotion.trainer.cli import main

    before = peak()
    code = main(arguments)
    sender.send(peak() - before)
    return code


def peak():
    """The most memory that this process has had, in bytes, as Linux says it."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
