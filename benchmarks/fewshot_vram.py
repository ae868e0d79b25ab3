"""Estimate the VRAM of a step of `fewshot` on the U-Net of SD1.5, with docs/first-steps.md's options for each card.

    python benchmarks/fewshot_vram.py           (a minute or two for each row)
    python benchmarks/fewshot_vram.py --size 384x256 --frames 12        (with any options of fewshot)

Prints GiB as estimated, in bfloat16 as on a GPU; nothing is computed and no weights are needed.
"""

import sys

import torch
from diffusers import UNet2DConditionModel
from presets import cells_of, in_mixed_precision
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Plan
from stillmotion.trainer.commands.fewshot import inflation_config
from stillmotion.trainer.config import read_options
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run.estimate import GIB, estimate_memory
from torch import nn

CARDS = {
    6: "--size 384x256 --frames 12",
    8: "--size 512x320",
    12: "--size 768x448",
    24: "--size 768x448 --frames 24 --batch-size 2",
}


def estimated(options):
    """Estimate a step, of tensors that were never written to and so take no memory on a CPU."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        inflation = Inflation(inflation_config(options), structure_of(unet))
    nn.Module.to(unet, torch.bfloat16)  # diffusers' own warns
    network = InflatedUNet(unet, inflation, checkpointing=options.checkpointing).to_empty(device="cpu")
    model = in_mixed_precision(Objective(network, Plan(options.seed, options.frames, cells_of(options))))
    rows = options.batch_size, options.frames
    state = {"ema": options.ema is not None, "eight_bit": options.eight_bit}
    return estimate_memory(model, rows, cells_of(options), **state, accumulation=options.accumulation)


def main():
    rows = {None: " ".join(sys.argv[1:])} if sys.argv[1:] else CARDS
    for card, words in rows.items():
        memory = estimated(read_options(FewShotOptions, ["--videos", "clips", *words.split()], ""))
        print(f"{words:40} {memory.total / GIB:5.1f}{f' of {card}' if card else ''} GiB   {memory}", flush=True)


if __name__ == "__main__":
    main()
