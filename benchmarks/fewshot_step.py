"""A few-shot training step against the same step of the frozen U-Net with the same trainable queries.

    python benchmarks/fewshot_step.py --width 320 --size 512x320          (SD1.5 itself, on a GPU)
    python benchmarks/fewshot_step.py --width 64 --size 256x160           (its layers, narrower, on a CPU)

Prints, for each part alone and for all together, the time of a step (forward, backward, AdamW; medians of several
rounds, in turns) and the memory at its peak (weights, gradients, moments, activations), as ratios to the frozen U-Net.
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import torch
from diffusers import UNet2DConditionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.clips.batches import Plan
from stillmotion.trainer.config import parse_size
from stillmotion.trainer.losses.denoising import noise_loss
from stillmotion.trainer.losses.objective import Objective
from stillmotion.trainer.run.estimate import GIB, estimate_memory
from stillmotion.trainer.run.optimiser import make_optimizer

FROZEN = InflationConfig(queries=Queries(16))
CASES = {
    "frozen + queries": FROZEN,
    "+ frame attention": replace(FROZEN, frame_attention=CrossFrames()),
    "+ memory": replace(FROZEN, recurrence=Recurrence()),
    "all of fewshot": replace(FROZEN, frame_attention=CrossFrames(), recurrence=Recurrence()),
    "+ temporal blocks too": replace(
        FROZEN, frame_attention=CrossFrames(), recurrence=Recurrence(), temporal=Temporal()
    ),
}


def sd15_unet(width):
    """SD1.5's layers; `width` 320 is SD1.5 itself."""
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=768, attention_head_dim=8
    )


class Step:
    """One model with its optimiser, and inputs of a clip."""

    def __init__(self, config, options):
        unet = sd15_unet(options.width).to(options.device)
        inflation = Inflation(config, structure_of(unet)).to(options.device)
        with torch.no_grad():  # a trained gate: at exactly zero some kernels could be luckier than later
            for name, parameter in inflation.named_parameters():
                parameter.fill_(0.1) if name.endswith("gamma") else None
        self.model = InflatedUNet(unet, inflation, checkpointing=options.checkpointing)
        self.optimizer = make_optimizer(self.model)
        self.options, self.cells = options, (options.size[0] // 8, options.size[1] // 8)
        rows, device = options.frames, options.device
        self.sample = torch.randn(rows, 4, self.cells[1], self.cells[0], device=device)
        self.text = torch.randn(rows, 77, 768, device=device)
        self.times = torch.full((rows,), 500, device=device)

    def __call__(self):
        with torch.autocast(self.options.device, torch.bfloat16, enabled=self.options.bf16):
            predicted = self.model(self.sample, self.times, self.text, Clip.of(self.options.frames))
        noise_loss(predicted, self.sample, self.options.frames, "noisy").mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def memory(self):
        if self.options.device != "cuda":
            rows = (1, self.options.frames)
            objective = Objective(self.model, Plan(0, self.options.frames, self.cells))
            return estimate_memory(objective, rows, self.cells, average=False, eight_bit=False).total
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated()

    def seconds(self):
        """CPU seconds of this process, which other load does not count into; on a GPU, seconds until it is done."""
        clock = time.perf_counter if self.options.device == "cuda" else time.process_time
        begin = clock()
        self()
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        return clock() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=64, help="channels of the finest level, default 64")
    parser.add_argument("--size", type=parse_size, default=(256, 160), help="default 256x160")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--checkpointing", action="store_true", help="recompute layers in the backward pass")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    bytes_, seconds = {}, {}
    for name, config in CASES.items():
        step = Step(config, options)
        bytes_[name] = step.memory()
        step()
        # in turns with the frozen U-Net, so that a change of the machine's speed meets both
        frozen = step if config is FROZEN else Step(FROZEN, options)
        pairs = [(step.seconds(), frozen.seconds()) for _ in range(options.rounds)]
        seconds[name] = [median(column) for column in zip(*pairs)]
        del step, frozen  # nothing of them may count into the next one's memory
    print(f"{'':22} seconds  ratio    GiB  ratio")
    for name, (mine, frozen) in seconds.items():
        memory, base = bytes_[name] / GIB, bytes_["frozen + queries"] / GIB
        print(f"{name:22} {mine:7.2f}  {mine / frozen:5.2f}  {memory:5.2f}  {memory / base:5.2f}")


if __name__ == "__main__":
    main()
