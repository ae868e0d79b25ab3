"""Time a few-shot training step against the same step of the frozen U-Net with the same trainable queries.

    python benchmarks/fewshot_step.py --width 320 --size 512x320          (SD1.5 itself, on a GPU)
    python benchmarks/fewshot_step.py --width 64 --size 256x160           (its layers, narrower, on a CPU)

Prints, for each part alone and for all together, the time of a step (forward, backward, AdamW) and the memory at its
peak (weights, gradients, moments, activations), as ratios to the frozen U-Net.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from side_by_side import DEVICE, Costs, measure, peak_memory, print_costs, print_header
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.losses.denoising import prediction_loss
from stillmotion.trainer.run.optimiser import make_optimizer

FROZEN = InflationConfig(queries=Queries(16))
REFERENCE = "frozen + queries"
CASES = {
    "+ frame attention": replace(FROZEN, frame_attention=CrossFrames()),
    "+ recurrence": replace(FROZEN, recurrence=Recurrence()),
    "all of fewshot": replace(FROZEN, frame_attention=CrossFrames(), recurrence=Recurrence()),
    "+ temporal blocks too": replace(
        FROZEN, frame_attention=CrossFrames(), recurrence=Recurrence(), temporal=Temporal()
    ),
}


def sd15_unet(width):
    """Return SD1.5's layers; `width` 320 is SD1.5 itself."""
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=768, attention_head_dim=8
    )


class Step:
    """A training step of one model, with its optimiser and the inputs of a clip; called with no arguments."""

    def __init__(self, config, options):
        unet = sd15_unet(options.width).to(options.device)
        inflation = Inflation(config, structure_of(unet)).to(options.device)
        with torch.no_grad():  # a trained gate: at exactly zero some kernels could be luckier than later
            for name, parameter in inflation.named_parameters():
                parameter.fill_(0.1) if name.endswith("gamma") else None
        self.model = InflatedUNet(unet, inflation, checkpointing=options.checkpointing)
        self.optimizer = make_optimizer(self.model)
        self.options, (width, height) = options, options.size
        rows, device = options.frames, options.device
        self.sample = torch.randn(rows, 4, height // 8, width // 8, device=device)
        self.text = torch.randn(rows, 77, 768, device=device)
        self.times = torch.full((rows,), 500, device=device)

    def __call__(self):
        with torch.autocast(self.options.device.type, torch.bfloat16, enabled=self.options.bf16):
            predicted = self.model(self.sample, self.times, self.text, Clip.of(self.options.frames))
        prediction_loss(predicted, self.sample, self.options.frames, "noisy").mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_and_take_two(config, options):
    """Run what holds all of a step at once: in the second one AdamW's moments are there from the start."""
    step = Step(config, options)
    step()
    step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the finest level, default 64")
    parser.add_argument("--size", type=parse_size, default=(256, 160), help="default 256x160")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--device", type=torch.device, default=DEVICE)
    options = parser.parse_args()
    print_header(REFERENCE)
    base = peak_memory(partial(make_and_take_two, FROZEN, options), options.device)
    for name, config in CASES.items():
        memory = {REFERENCE: base, name: peak_memory(partial(make_and_take_two, config, options), options.device)}
        steps = {
            REFERENCE: Step(FROZEN, options),
            name: Step(config, options),
        }
        print_costs("", Costs(measure(steps, options.rounds, options.device).rounds, memory), REFERENCE)


if __name__ == "__main__":
    main()
