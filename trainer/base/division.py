"""Shards of the trained weights on each process by FSDP version 2, gathered for files. Without FSDP all are whole."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from ...networks.inflation import Inflation
from ...networks.lora import Lora
from ...networks.temporal_lora import TemporalLoras


def prepare(
    accelerator: Accelerator, objective: nn.Module, inflation: Inflation, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Return the objective and the optimizer as accelerate runs them, what trains sharded where it was set up for
    that."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return accelerator.prepare(objective, optimizer)
    from torch.distributed.fsdp import register_fsdp_forward_method  # torch 2.5 has none

    choose_units(plugin, objective, inflation)
    model, optimizer = accelerator.prepare(objective, optimizer)
    model.forward = accelerator.autocast()(model.forward)  # as accelerate does it without FSDP
    for method in ("predict", "predict_picture"):
        register_fsdp_forward_method(model, method)
    return model, optimizer


def choose_units(plugin: FullyShardedDataParallelPlugin, objective: nn.Module, inflation: Inflation) -> None:
    """Have each part of the inflation gathered when it is called, and the rest of what trains for a whole step.

    The frozen U-Net, whose layers the host calls one by one, stays whole on every process; so do single numbers, which
    FSDP cannot divide. Types of numbers are autocast's business, as without FSDP.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    # LoRAs of queries are too small to be gathered one by one; of those on attentions hooks call the matrices alone
    units = [part for _, part in inflation.parts() if not isinstance(part, Lora | TemporalLoras)]
    plugin.auto_wrap_policy = transformer_auto_wrap_policy
    plugin.transformer_cls_names_to_wrap = sorted({type(part).__name__ for part in units})
    whole_ones = [p for p in objective.parameters() if not (p.requires_grad and p.ndim)]
    plugin.ignored_modules = [nn.ParameterList(whole_ones)]
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    plugin.activation_checkpointing = plugin.cpu_ram_efficient_loading = False


def reduce_unsharded(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Average gradients over processes where FSDP does not: those of single numbers, if others are divided."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    single = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if single and len(single) < len(gradients):
        torch._foreach_copy_(single, list(accelerator.reduce(torch.stack(single), "mean")))


def gather(state):
    """Return nested dicts and lists with whole tensors in place of shards, on the CPU.

    All processes must call it; only on the first one are they more than placeholders.
    """
    first = PartialState().is_main_process

    def gathered(tensor: DTensor) -> Tensor:
        everything = tensor.detach().full_tensor()
        return everything.cpu() if first else torch.empty(0)

    return tree_map_only(DTensor, gathered, state)


def shard(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Shard a whole tensor as another one of its shape is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: shard(tensor, own.get(name)) for name, tensor in tensors.items()})


def load_optimizer(optimizer: Optimizer, saved: dict) -> None:
    """Load whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: shard(value, parameters[number]) for name, value in of_one.items()}
        for number, of_one in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
