"""Time Temporal Windows on clips of growing length, through ComfyUI's own sampler, and their peak memory.

    python benchmarks/windows.py [--frames 16 80 320] [--window 16] [--overlap 4] [--cells 32]

Needs a ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI. Memory is what a sampler run holds at its peak beside the weights;
time is what a step takes, against that of one window times the number of windows.
"""

import argparse
from functools import partial

import torch
from comfyui import load_comfyui
from random_weights import randomise
from side_by_side import DEVICE, measure

STEPS = 2


def random_model():
    """Return a MODEL of the SD1.5 family with a random U-Net of two levels."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    shape = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1, 1]}
    shape |= {"channel_mult": (1, 2), "use_spatial_transformer": True, "context_dim": 768, "num_heads": 8}
    shape |= {"transformer_depth": [1, 1], "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1}
    config = comfy.supported_models.SD15({**shape, "legacy": False, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=DEVICE).eval()
    return comfy.model_patcher.ModelPatcher(randomise(model), DEVICE, torch.device("cpu"))


def sample(model, frames, cells):
    import comfy.sample

    noise, text = torch.randn(frames, 4, cells, cells), [[torch.randn(1, 77, 768), {}]]
    settings = STEPS, 5.0, "euler", "normal", text, text, torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=0)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 80, 320], help="default 16 80 320")
    parser.add_argument("--window", type=int, default=16, help="default 16")
    parser.add_argument("--overlap", type=int, default=4, help="default 4")
    parser.add_argument("--cells", type=int, default=32, help="width and height of the latents, default 32")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    options = parser.parse_args()
    load_comfyui()
    from stillmotion.nodes.windowing import sampled_on_windows
    from stillmotion.samplers.windows import window_count

    model = random_model()
    on_windows = sampled_on_windows(model, options.window, options.overlap, "pyramid")
    print("| frames | windows | peak MiB, windows | peak MiB, whole clip | s per step | of windows x one window |")
    print("|---|---|---|---|---|---|")
    for frames in options.frames:
        count = window_count(frames, options.window, options.overlap)
        ways = {
            "one window": partial(sample, model, options.window, options.cells),
            "windows": partial(sample, on_windows, frames, options.cells),
            "whole clip": partial(sample, model, frames, options.cells),
        }
        costs = measure(ways, options.rounds)
        memory = f"{costs.memory['windows']:.0f} | {costs.memory['whole clip']:.0f}"
        ratio = costs.ratios("windows", "one window")[0] / count
        print(f"| {frames} | {count} | {memory} | {costs.seconds('windows') / STEPS:.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
