"""The memory that `inflate` takes for a step with each file of trainer/presets, on the U-Net of Stable Diffusion 1.5.

    python benchmarks/presets.py                (a minute or two for each file)
    python benchmarks/presets.py 24gb           (one of them)

Prints GiB as estimated, in bfloat16 as on a GPU; nothing is computed and no weights are needed. Ends with an error
where a file leaves less than a tenth of its card to the GPU's own needs.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.batches import Plan
from stillmotion.trainer.config import read_options
from stillmotion.trainer.estimate import GIB, estimate_memory
from stillmotion.trainer.host import InflatedUNet, structure_of
from stillmotion.trainer.inflate import inflation_config, weights_of_losses
from stillmotion.trainer.objectives import Harivo
from stillmotion.trainer.options import InflateOptions
from stillmotion.trainer.run import cells_of
from torch import nn

PRESETS = Path(__file__).resolve().parents[1] / "trainer" / "presets"
USABLE = 0.9


def options_of(file):
    return read_options(InflateOptions, ["--videos", "set", "--base", "sd15", "--config", str(file)], "inflate")


def objective_of(options):
    """SD1.5 with its inflation, of tensors that were never written to and so take no memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        inflation = Inflation(inflation_config(options, structure_of(unet)), structure_of(unet))
    nn.Module.to(unet, torch.bfloat16)  # diffusers' own warns
    network = InflatedUNet(unet, inflation, checkpointing=options.checkpointing).to_empty(device="cpu")
    plan = Plan(options.seed, options.frames, cells_of(options))
    return in_mixed_precision(Harivo(network, plan, weights_of_losses(options), options.queue))


def in_mixed_precision(objective):
    """As on a GPU, where autocast has norms compute in float32; on a CPU it does not."""
    for module in objective.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
    objective.forward = torch.autocast("cpu", torch.bfloat16)(objective.forward)
    return objective


def memory_of(options):
    sizes = (options.batch_size, options.frames), cells_of(options)
    return estimate_memory(objective_of(options), *sizes, average=options.ema is not None, eight_bit=options.eight_bit)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="", help="part of a file's name")
    only, too_large = parser.parse_args().only, []
    for file in sorted(PRESETS.glob(f"*{only}*.toml"), key=card_of):
        memory, card = memory_of(options_of(file)), card_of(file)
        print(f"{file.name:20} {memory.total / GIB:5.1f} of {card} GiB   {memory}", flush=True)
        if memory.total > USABLE * card * GIB:
            too_large.append(file.name)
    if too_large:
        sys.exit(f"too large for their cards: {', '.join(too_large)}")


def card_of(file):
    """GB in its name."""
    return int(re.search(r"(\d+)gb", file.name).group(1))


if __name__ == "__main__":
    main()
