"""Time our loop over ComfyUI's U-Net against the stock forward, nothing attached, and its peak memory.

    python benchmarks/comfyui_loop.py [--frames 16] [--cells 32] [--rounds 10]

Needs a ComfyUI at $COMFYUI_PATH or ~/comfy/ComfyUI. The U-Net has SD1.5's topology at three tenths of its width.
"""

import argparse

import torch
from comfyui import load_comfyui
from random_weights import randomise
from side_by_side import DEVICE, measure, print_costs, print_header


def unet_and_inputs(frames, cells):
    import comfy.ops
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
    )
    rows = 2 * frames
    inputs = torch.randn(rows, 4, cells, cells), torch.full((rows,), 500.0), torch.randn(rows, 77, 768)
    return randomise(unet.eval()).to(DEVICE), [tensor.to(DEVICE) for tensor in inputs]


def forwards(unet, inputs, frames):
    """Return both forwards, each called with no arguments."""
    from stillmotion.networks.clip import Clip
    from stillmotion.nodes.unet import run_unet

    def stock():
        return unet(*inputs, transformer_options={"cond_or_uncond": [1, 0]})

    def ours():
        return run_unet(unet, [], Clip.of(frames), *inputs, transformer_options={"cond_or_uncond": [1, 0]})

    return {"stock": stock, "ours": ours}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--cells", type=int, default=32, help="width and height of the latents, default 32")
    parser.add_argument("--rounds", type=int, default=10, help="default 10")
    options = parser.parse_args()
    load_comfyui()
    both = forwards(*unet_and_inputs(options.frames, options.cells), options.frames)
    assert torch.equal(both["ours"](), both["stock"]())
    print_header("stock")
    print_costs(f"{options.frames} frames", measure(both, options.rounds), "stock")


if __name__ == "__main__":
    main()
