"""Estimate the VRAM of a step of `inflate` and `decouple` with each file of trainer/presets, on the U-Net of SD1.5.

    python benchmarks/presets.py                (a minute or two for each file)
    python benchmarks/presets.py 24gb           (one of them)
    python benchmarks/presets.py --measure      (on a GPU that has the memory)

Prints GiB as estimated, in bfloat16 as on a GPU; nothing is computed and no weights are needed. With --measure it takes
two steps of random weights and clips, and prints the most that was allocated at once. Ends with an error where a file
leaves less than a tenth of its card to the GPU's own needs.
"""

import argparse
import gc
import re
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from random_weights import randomise
from side_by_side import DEVICE
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Batch, Plan
from stillmotion.trainer.config import read_options
from stillmotion.trainer.losses.decoupling import Decoupling
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.options import DecoupleOptions, InflateOptions
from stillmotion.trainer.run.architecture import decoupled, inflation_config
from stillmotion.trainer.run.estimate import GIB, estimate_memory
from stillmotion.trainer.run.loop import start_training, update
from stillmotion.trainer.run.network import spatial_of
from stillmotion.trainer.run.optimiser import Schedule
from stillmotion.trainer.run.terms import terms_of
from torch import nn

PRESETS = Path(__file__).resolve().parents[1] / "trainer" / "presets"
USABLE = 0.9


def options_of(file):
    kind = DecoupleOptions if file.name.startswith("higen") else InflateOptions
    return read_options(kind, ["--videos", "set", "--base", "sd15", "--config", str(file)], "")


def objective_of(options, device="cpu"):
    """Return SD1.5 with its inflation, of tensors that were never written to and so take no memory on a CPU."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        config = inflation_config(options, options.frames, structure_of(unet))
        config = decoupled(config, options, "latent") if isinstance(options, DecoupleOptions) else config
        inflation = Inflation(config, structure_of(unet))
    spatial = spatial_of(options)
    if spatial.get("spatial") != "full":
        nn.Module.to(unet, torch.bfloat16)  # diffusers' own warns
    network = InflatedUNet(unet, inflation, checkpointing=options.checkpointing, **spatial).to_empty(device=device)
    plan = Plan(options.seed, options.frames, cells_of(options))
    return Objective(network, plan, terms_of(options, network, plan), Decoupling() if config.motion else None)


def cells_of(options):
    """Return (width, height) of the latents."""
    return options.size[0] // 8, options.size[1] // 8


def in_mixed_precision(model):
    """Have norms compute in float32, as autocast does on a GPU and not on a CPU."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float().register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    return model


def estimated(options):
    sizes = (options.batch_size, options.frames), cells_of(options)
    model = in_mixed_precision(objective_of(options))
    state = {"ema": options.ema is not None, "eight_bit": options.eight_bit}
    return estimate_memory(model, *sizes, **state, accumulation=options.accumulation)


def measured(options):
    """Return the most bytes that were allocated at once in two steps on the GPU."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=options.accumulation)
    model = objective_of(options, DEVICE)
    randomise(model.network)
    model.inflation.requires_grad_(True)
    state = {"ema": options.ema, "eight_bit": options.eight_bit}
    training = start_training(accelerator, model, Schedule(2, 1e-6), batch_size=options.batch_size, **state)
    for step in (1, 2):
        update(training, lambda *_: random_batch(options), step)
    return torch.cuda.max_memory_allocated()


def random_batch(options):
    rows = options.batch_size * options.frames
    latents = torch.randn(2, rows, 4, *reversed(cells_of(options)))
    times = torch.randint(1000, (options.batch_size,)).repeat_interleave(options.frames)
    text = torch.randn(rows, 77, 768)
    return Batch(*latents, times, text, options.frames, tuple(range(options.batch_size)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("only", nargs="?", default="gb", help="part of a file's name")
    parser.add_argument("--measure", action="store_true", help="take steps on this GPU instead of estimating")
    given, too_large = parser.parse_args(), []
    for file in sorted(PRESETS.glob(f"*{given.only}*.toml"), key=card_of):
        options, card = options_of(file), card_of(file)
        memory = None if given.measure else estimated(options)
        total = memory.total if memory else measured(options)
        print(f"{file.name:20} {total / GIB:5.1f} of {card} GiB   {memory or 'measured'}", flush=True)
        if total > USABLE * card * GIB:
            too_large.append(file.name)
    if too_large:
        sys.exit(f"too large for their cards: {', '.join(too_large)}")


def card_of(file):
    """Return the GB in its name."""
    return int(re.search(r"(\d+)gb", file.name).group(1))


if __name__ == "__main__":
    main()
