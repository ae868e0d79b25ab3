"""Where a run computes: on which device, with how many processes, in which type of number."""

from __future__ import annotations

import importlib.util
import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, parse_flag_from_env

from ..options import SpatialOptions, TrainOptions


def refused_ways() -> dict[str, bool]:
    """List ways to divide a model among processes that cannot train here, and whether accelerate was set up for
    them."""
    fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP")
    return {
        "FSDP version 1": fsdp and os.environ.get("FSDP_VERSION") != "2",
        "FSDP with offloading": fsdp and parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
        "DeepSpeed": parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
    }


def this_process() -> PartialState:
    """Return this process among those of the run, on the CPU where ACCELERATE_USE_CPU says so.

    Raises:
        ValueError: several processes were started and do not know of one another: each would train alone. Or the
            model would be divided among them in a way from which it cannot be put together again.
    """
    for way, asked_for in refused_ways().items():
        if asked_for:
            raise ValueError(
                f"accelerate is set up for {way}, which cannot train here: start the processes with"
                " `accelerate launch --multi_gpu` (DDP), or with `--use_fsdp --fsdp_version 2` to divide what trains."
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
    """Raise ValueError where fp16 was asked for without a GPU."""
    on_gpu = this_process().device.type == "cuda"
    if options.precision == "fp16" and not on_gpu:
        raise ValueError("--precision is fp16, which needs a GPU; fp32 and bf16 work everywhere.")
    if options.precision != "auto":
        return options.precision
    if not on_gpu:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Raise ValueError where what trains is to be divided and an optimiser was asked for that needs whole weights."""
    divides = parse_flag_from_env("ACCELERATE_USE_FSDP")
    if options.eight_bit and divides:
        raise ValueError(
            "--eight-bit needs whole weights, and FSDP divides them: leave it out, or start the processes with"
            " `accelerate launch --multi_gpu`."
        )
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch refuses deterministic sums without it
        torch.use_deterministic_algorithms(True)
    # a micro-batch of pictures leaves all weights over time without gradients, and DDP would wait for them
    idle = isinstance(options, SpatialOptions) and options.spatial != "frozen" and options.image_share > 0
    return Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if idle else [],
        # FSDP keeps whole gradients until they are summed up over processes
        gradient_accumulation_plugin=GradientAccumulationPlugin(options.accumulation, sync_each_batch=divides),
        mixed_precision="no" if options.precision == "fp32" else options.precision,
        log_with="tensorboard" if importlib.util.find_spec("tensorboard") else None,
        project_dir=str(options.output),
    )
