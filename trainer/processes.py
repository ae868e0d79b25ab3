"""Where a run computes: on which device, with how many processes, in which type of number."""

from __future__ import annotations

import importlib.util
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from .options import TrainOptions

DIVIDING = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
"""Ways to divide a model among processes, and what accelerate says in the environment where it was asked for one."""


def this_process() -> PartialState:
    """This process among those of the run, on the CPU where ACCELERATE_USE_CPU says so.

    Raises:
        ValueError: several processes were started and do not know of one another: each would train alone. Or the
            model would be divided among them, while saves, the running mean and the file are made of whole weights.
    """
    for way, variable in DIVIDING.items():
        if parse_flag_from_env(variable):
            raise ValueError(
                f"accelerate is set up for {way}, which divides the model; every process must have the whole of it:"
                " start them with `accelerate launch --multi_gpu` (DDP)."
            )
    process = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    started = int(os.environ.get("WORLD_SIZE", 1))
    if process.num_processes != started:
        raise ValueError(
            f"{started} processes were started and found no GPUs to work together on: start one, or set"
            " ACCELERATE_USE_CPU=true to divide the work among them on the CPU."
        )
    return process


def resolved_precision(options: TrainOptions) -> str:
    """Raises ValueError where fp16 was asked for without a GPU."""
    on_gpu = this_process().device.type == "cuda"
    if options.precision == "fp16" and not on_gpu:
        raise ValueError("--precision is fp16, which needs a GPU; fp32 and bf16 work everywhere.")
    if options.precision != "auto":
        return options.precision
    if not on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def make_accelerator(options: TrainOptions) -> Accelerator:
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses deterministic sums without it
        torch.use_deterministic_algorithms(True)
    return Accelerator(
        gradient_accumulation_steps=options.accumulation,
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        log_with="tensorboard" if importlib.util.find_spec("tensorboard") else None,
        project_dir=str(options.output),
    )
