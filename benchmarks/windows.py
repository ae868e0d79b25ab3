"""Temporal Windows: memory and time of clips of growing length, through ComfyUI's own sampler.

    python benchmarks/windows.py [--frames 16 80 320] [--window 16] [--overlap 4] [--cells 32]

Needs a ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI. Memory is what a sampler run adds at its peak, in a process of its
own; time is what a step takes, against that of one window times the number of windows.
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
STEPS = 2


def load_comfyui():
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args
    import comfy.options  # noqa: F401
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def random_model():
    """A MODEL of the SD1.5 family with a random U-Net of two levels."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    shape = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1]}
    shape |= {"channel_mult": (1, 2), "use_spatial_transformer": True, "context_dim": 768, "num_heads": 8}
    shape |= {"transformer_depth": [1, 1], "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1}
    config = comfy.supported_models.SD15({**shape, "legacy": False, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.get_torch_device()
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def sample(model, frames, cells):
    import comfy.sample
    import torch

    noise, text = torch.randn(frames, 4, cells, cells), [[torch.randn(1, 77, 768), {}]]
    settings = STEPS, 5.0, "euler", "normal", text, text, torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=0)


def windowed(model, options):
    from stillmotion.nodes.windowing import sampled_on_windows

    return sampled_on_windows(model, options.window, options.overlap, "pyramid")


def peak_memory(frames, on_windows, options, answers):
    """MB that a run adds at its peak, in a process that does nothing else; on a GPU, of its memory."""
    import torch

    load_comfyui()
    model = random_model()
    model = windowed(model, options) if on_windows else model
    with torch.inference_mode():
        sample(model, 1, options.cells)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            sample(model, frames, options.cells)
            return answers.put((torch.cuda.max_memory_allocated() - before) / 2**20)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sample(model, frames, options.cells)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    answers.put(peak - pages * resource.getpagesize() / 2**20)


def measured_alone(*arguments):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=peak_memory, args=(*arguments, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def seconds_per_step(model, frames, cells):
    """CPU seconds of this process, which other load does not count into; on a GPU, seconds until it is done."""
    import torch

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    sample(model, frames, cells)
    return (clock() - began) / STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 80, 320])
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--cells", type=int, default=32, help="width and height of the latent")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    memory = {
        frames: [measured_alone(frames, on_windows, options) for on_windows in (True, False)]
        for frames in options.frames
    }

    load_comfyui()
    import torch
    from stillmotion.samplers.windows import window_count

    model = windowed(random_model(), options)
    print("| frames | windows | peak MB, windows | peak MB, whole clip | s per step | of windows x one window |")
    print("|---|---|---|---|---|---|")
    with torch.inference_mode():
        sample(model, options.window, options.cells)
        for frames in options.frames:
            count = window_count(frames, options.window, options.overlap)
            pairs = [
                [seconds_per_step(model, n, options.cells) for n in (options.window, frames)]
                for _ in range(options.rounds)
            ]
            ratio = statistics.median(long / (count * one) for one, long in pairs)
            taken = statistics.median(long for _, long in pairs)
            cut, whole = memory[frames]
            print(f"| {frames} | {count} | {cut:.0f} | {whole:.0f} | {taken:.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
