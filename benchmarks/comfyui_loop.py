"""Our loop over ComfyUI's U-Net against the stock forward, nothing attached: time and peak memory as ratios.

    python benchmarks/comfyui_loop.py [--frames 16] [--cells 32] [--rounds 10]

Needs a ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI. The U-Net has SD1.5's topology at three tenths of its width.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from pathlib import Path

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")


def load_comfyui():
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args
    import comfy.options  # noqa: F401
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def unet_and_inputs(frames, cells):
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=96,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=(1, 2, 4, 4),
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        context_dim=768,
        legacy=False,
        operations=comfy.ops.disable_weight_init,
    ).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = 2 * frames
    inputs = torch.randn(rows, 4, cells, cells), torch.full((rows,), 500.0), torch.randn(rows, 77, 768)
    return unet.to(device), [tensor.to(device) for tensor in inputs]


def forwards(unet, inputs, frames):
    """Both forwards, each called with no arguments."""
    from stillmotion.networks.clip import Clip
    from stillmotion.nodes.unet import run_unet

    def stock():
        return unet(*inputs, transformer_options={"cond_or_uncond": [1, 0]})

    def ours():
        return run_unet(unet, [], Clip.of(frames), *inputs, transformer_options={"cond_or_uncond": [1, 0]})

    return {"stock": stock, "ours": ours}


def seconds(forward, on_gpu):
    """CPU seconds of this process, which other load does not count into; on a GPU, seconds until it is done."""
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    forward().sum().item()
    return clock() - began


def peak_memory(name, frames, cells, answers):
    """Peak MB of a process that does nothing else."""
    import torch

    load_comfyui()
    with torch.no_grad():
        forward = forwards(*unet_and_inputs(frames, cells), frames)[name]
        forward()
        forward()
    cuda = torch.cuda.is_available()
    answers.put(
        torch.cuda.max_memory_allocated() / 2**20
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )


def measured_alone(name, frames, cells):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=peak_memory, args=(name, frames, cells, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--cells", type=int, default=32, help="width and height of the latent")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    memory = {name: measured_alone(name, options.frames, options.cells) for name in ("stock", "ours")}

    load_comfyui()
    import torch

    with torch.no_grad():
        both = forwards(*unet_and_inputs(options.frames, options.cells), options.frames)
        assert torch.equal(both["ours"](), both["stock"]())
        rounds = [
            {name: seconds(forward, torch.cuda.is_available()) for name, forward in both.items()}
            for _ in range(options.rounds)
        ]
    ratios = [r["ours"] / r["stock"] for r in rounds]
    print(
        f"time:   ours / stock = {statistics.median(ratios):.3f} (median of {len(ratios)} pairs,"
        f" {min(ratios):.3f} to {max(ratios):.3f}; stock {statistics.median(r['stock'] for r in rounds):.2f} s)"
    )
    print(f"memory: ours / stock = {memory['ours'] / memory['stock']:.3f} (peak {memory['stock']:.0f} MB stock)")


if __name__ == "__main__":
    main()
