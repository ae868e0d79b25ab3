"""The trainer's host against diffusers' UNetMotionModel on the same weights: the same video, and what a forward costs.

    python benchmarks/motion_model.py [--width 320] [--frames 16 32 80] [--cells 16] [--rounds 3]

SD1.5's layers with random weights, on a CPU, one thread, without gradients; 8 GB of memory at its full width of 320.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.formats.motion_adapter import to_motion_adapter
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo
from stillmotion.networks.presets import lumiere
from stillmotion.trainer.host import InflatedUNet, structure_of

ANIMATEDIFF = InflationConfig(temporal=Temporal(norm_scope="clip", middle=True))
TIMED = {"AnimateDiff's blocks": lambda structure, frames: ANIMATEDIFF, "Lumiere's space-time U-Net": lumiere}
"""Timed in our host, against UNetMotionModel with the first of them; each for a U-Net and so many frames."""


def random_unet(width):
    widths = (width, 2 * width, 4 * width, 4 * width)
    unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8)
    return randomise(unet.eval())


def randomise(module):
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return module.requires_grad_(False)


def in_diffusers(unet, inflation, frames):
    """UNetMotionModel on the tensors of `unet`, not on copies."""
    info = MotionInfo(ANIMATEDIFF, structure_of(unet), frames=frames)
    config, tensors = to_motion_adapter(info, inflation.state_dict())
    with torch.device("meta"):
        image, motion = UNet2DConditionModel.from_config(unet.config), MotionAdapter.from_config(config)
        model = UNetMotionModel.from_unet2d(image, motion, load_weights=False)
    model.load_state_dict({**unet.state_dict(), **tensors}, assign=True)
    return model.eval().requires_grad_(False)


def forwards(models, frames, cells):
    """Each model's forward of one clip, called with no arguments; all return `(frames, channels, height, width)`."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(frames, 4, cells, cells, generator=generator)
    text = torch.randn(1, 77, 768, generator=generator).repeat(frames, 1, 1)
    clip, times = sample.transpose(0, 1)[None], torch.full((frames,), 500)
    return {
        "theirs": lambda: models["theirs"](clip, 500, text).sample[0].transpose(0, 1),
        "ours": lambda: models["ours"](sample, times, text, Clip.of(frames)),
    }


def seconds(forward):
    """CPU seconds of this process, which other load does not count into."""
    began = time.process_time()
    forward()
    return time.process_time() - began


def peak_memory(forward):
    """MB of tensors that a forward holds at once beside the weights, as PyTorch's allocator reports them."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            forward()
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_bytes())["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    return (max(change["Total Allocated"] for change in changes) - before) / 2**20


def print_difference(models, still, cells):
    both, image = forwards(models, 7, cells), forwards({"theirs": models["theirs"], "ours": still}, 7, cells)
    theirs, ours = both["theirs"](), both["ours"]()
    print(
        f"max abs difference of a clip: {(ours - theirs).abs().max():.1e}; of the clip without motion:"
        f" {(ours - image['ours']()).abs().max():.2f}; largest value {ours.abs().max():.1f}"
    )


def print_row(name, frames, both, rounds):
    """Whoever went first goes second in the next round."""
    memory = {who: peak_memory(forward) for who, forward in both.items()}
    turns = [list(both.items())[:: -1 if i % 2 else 1] for i in range(rounds)]
    times = [{who: seconds(forward) for who, forward in turn} for turn in turns]
    ratios = [t["ours"] / t["theirs"] for t in times]
    print(
        f"| {name} | {frames} | {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        f" | {median(t['theirs'] for t in times):.1f} | {memory['ours'] / memory['theirs']:.3f}"
        f" | {memory['theirs']:.0f} |",
        flush=True,
    )


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=320, help="channels of the finest level, default 320")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 80])
    parser.add_argument("--cells", type=int, default=16, help="width and height of the latent, default 16")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet = random_unet(options.width)
    structure = structure_of(unet)
    same = randomise(Inflation(ANIMATEDIFF, structure))
    theirs = in_diffusers(unet, same, max(options.frames))
    print_difference({"theirs": theirs, "ours": InflatedUNet(unet, same)}, InflatedUNet(unet), options.cells)
    print("\n| | frames | time, ours / theirs | theirs, s | memory, ours / theirs | theirs, MB |")
    print("|---|---|---|---|---|---|")
    for name, config in TIMED.items():
        for frames in options.frames:
            ours = InflatedUNet(unet, randomise(Inflation(config(structure, frames), structure)))
            print_row(name, frames, forwards({"theirs": theirs, "ours": ours}, frames, options.cells), options.rounds)


if __name__ == "__main__":
    main()
