"""Compare one motion module in our STUNet Loader and in AnimateDiff-Evolved: the clips, and what a step costs.

    python benchmarks/animatediff_evolved.py --evolved PATH [--frames 16 32 80] [--cells 16] [--steps 1] [--rounds 3]
        [--only-speed]

PATH is a checkout of ComfyUI-AnimateDiff-Evolved, which is no part of this project. Needs a ComfyUI at $COMFYUI_PATH or
~/comfy/ComfyUI, and 10 GB of memory: the U-Net is SD1.5's at its full width, for that pack loads modules of no other.
Weights are random. Everything runs on a GPU in float16 where there is one, else in float32 on a CPU, in one thread;
attention is PyTorch's in both, as it is on most GPUs.
"""

import argparse
import asyncio
import inspect
import logging
import tempfile
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from comfyui import load_comfyui
from random_weights import randomise
from side_by_side import DEVICE, measure, print_costs, print_header
from stillmotion.networks.config import InflationConfig, Resampling, Temporal
from stillmotion.networks.formats.animatediff import to_animatediff
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo
from stillmotion.networks.presets import lumiere

ANIMATEDIFF = InflationConfig(temporal=Temporal(middle=True))
HALVED = InflationConfig(resampling=Resampling((0, 1, 2)))

LAYOUTS = {"v2": ANIMATEDIFF, "v3": InflationConfig(temporal=Temporal(middle=False))}
CLIP = {"frames": 7, "height": 8, "width": 16, "steps": 2, "cfg": 3.0}
LONG = {**CLIP, "frames": 13}
WINDOW = {"context_length": 6, "context_overlap": 2, "fuse_method": "pyramid"}

TYPE = torch.float16 if DEVICE.type == "cuda" else torch.float32
PACK = Path(__file__).resolve().parents[1]
SD15 = sd15_like([320, 640, 1280, 1280], [2, 2, 2, 2])
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "legacy": False,
    "dtype": TYPE,
}


def load_packs(evolved, folder):
    """Load the host with both packs, as it loads them itself; they look for files in `folder` too."""
    load_comfyui().use_pytorch_cross_attention = True
    import folder_paths
    import utils.extra_config  # noqa: F401  before nodes

    import nodes

    for kind in ("animatediff_models", "animatediff_motion_lora", "stillmotion"):
        folder_paths.add_model_folder_path(kind, str(folder))
    for pack in (evolved, PACK):
        assert asyncio.run(nodes.load_custom_node(str(pack))), f"{pack} could not be loaded"


def random_model():
    """Return a MODEL of SD1.5's shape."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(UNET)
    config.set_inference_dtype(TYPE, None)
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device=DEVICE).eval()
    randomise(base.diffusion_model)
    return comfy.model_patcher.ModelPatcher(base, DEVICE, torch.device("cpu"))


def random_tensors(config):
    """Return those of an inflation of SD1.5, on the CPU."""
    with DEVICE:
        inflation = randomise(Inflation(config, SD15))
    return inflation.cpu().state_dict()


def write_module(path, config, positions):
    """Write a random motion module in AnimateDiff's names."""
    info = MotionInfo(config, SD15, positions=positions)
    safetensors.torch.save_file(to_animatediff(info, random_tensors(config)), path)


def write_lora(path, module):
    """Write a random motion LoRA for every attention of the file `module`."""
    with safetensors.safe_open(module, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    lora = {}
    for name, shape in shapes.items():
        block, _, letter = name.removesuffix(".weight").removesuffix(".0").rpartition(".to_")
        if ".attention_blocks." in block and name.endswith(".weight"):
            lora[f"{block}.processor.to_{letter}_lora.down.weight"] = torch.randn(4, shape[1]) / 30
            lora[f"{block}.processor.to_{letter}_lora.up.weight"] = torch.randn(shape[0], 4) / 30
    safetensors.torch.save_file(lora, path)


def merge_lora(module, lora, output):
    """Do what `python -m trainer convert --lora` does."""
    from stillmotion.trainer.commands.convert import convert
    from stillmotion.trainer.options import ConvertOptions

    convert(ConvertOptions(input=module, lora=[lora], output=output))


def run_node(id, **inputs):
    """Return the first output of a node, of either generation."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS[id]
    if hasattr(node, "execute"):
        return node.execute(**inputs).args[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def in_ours(model, file, strength=1.0):
    settings = {"strength": strength, "frames_per_clip": 0, "schedule": "from file"}
    return run_node("StillmotionSTUNetLoader", model=model, motion_file=file, **settings)


def in_our_loop(model, config):
    """Attach a random inflation as the loader attaches one."""
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import LoadedMotion, make_patcher

    info, path = MotionInfo(config, SD15), Path("random")
    motion = LoadedMotion(path, info, {}, make_patcher(path, info, random_tensors(config)))
    return attach(model, motion, temporal=1.0, recurrence=1.0, queries=1.0)


def on_our_windows(model):
    length, overlap, fuse = WINDOW.values()
    return run_node("StillmotionTemporalWindows", model=model, window=length, overlap=overlap, fuse=fuse)


def on_core_windows(model):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode as node

    settings = {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "dim": 0}
    settings |= {"freenoise": False, **WINDOW}
    if "causal_window_fix" in inspect.signature(node.execute).parameters:
        settings["causal_window_fix"] = False  # one frame more in front of a window, which AnimateDiff-Evolved has not
    return node.execute(model, **settings).args[0]


def in_evolved(model, file, lora=None, windows=False):
    motion = run_node("ADE_LoadAnimateDiffModel", model_name=file)
    loras = lora and run_node("ADE_AnimateDiffLoRALoader", name=lora, strength=1.0)
    context = run_node("ADE_StandardStaticContextOptions", **WINDOW) if windows else None
    motions = run_node("ADE_ApplyAnimateDiffModelSimple", motion_model=motion, motion_lora=loras)
    settings = {"beta_schedule": "autoselect", "m_models": motions, "context_options": context}
    return run_node("ADE_UseEvolvedSampling", model=model, **settings)


@torch.inference_mode()
def sample(model, frames, height, width, steps=1, cfg=1.0):
    import comfy.sample

    noise = torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(0))
    text = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), {}] for seed in (1, 2)]
    settings = steps, cfg, "euler", "normal", text[:1], text[1:], torch.zeros_like(noise)
    return comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=0)


def write_files(folder):
    """Write modules of both layouts, a motion LoRA, and the first module with it merged."""
    for name, config in LAYOUTS.items():
        write_module(folder / f"{name}.safetensors", config, positions=32)
    write_lora(folder / "lora.safetensors", folder / "v2.safetensors")
    merge_lora(*(folder / f"{name}.safetensors" for name in ("v2", "lora", "merged")))


def print_difference(name, theirs, ours, without):
    """`without`: the clip without what is compared."""
    numbers = (ours - theirs).abs().max(), (ours - without).abs().max(), ours.abs().max()
    print("| {} | {:.1e} | {:.1f} | {:.0f} |".format(name, *numbers), flush=True)


def print_differences(model):
    print("| | max abs difference | of the clip without it | largest value |\n|---|---|---|---|")
    for name in LAYOUTS:
        file = f"{name}.safetensors"
        still = sample(in_ours(model, file, strength=0.0), **CLIP)  # on the module's noise schedule
        print_difference(name, *(sample(load(model, file), **CLIP) for load in (in_evolved, in_ours)), still)
    plain = sample(in_ours(model, "v2.safetensors"), **CLIP)
    theirs = sample(in_evolved(model, "v2.safetensors", "lora.safetensors"), **CLIP)
    print_difference("a motion LoRA on v2", theirs, sample(in_ours(model, "merged.safetensors"), **CLIP), plain)
    print_differences_on_windows(model, "v2.safetensors")


def print_differences_on_windows(model, file):
    ours = in_ours(model, file)
    theirs, whole = sample(in_evolved(model, file, windows=True), **LONG), sample(ours, **LONG)
    for name, windows in {"ComfyUI's": on_core_windows, "our": on_our_windows}.items():
        print_difference(f"{name} windows of 6 frames on v2", theirs, sample(windows(ours), **LONG), whole)


def print_speeds(model, folder, options):
    """Time AnimateDiff-Evolved with a module of version 2, and ours as their files would be."""
    write_module(folder / "long.safetensors", ANIMATEDIFF, positions=max(options.frames))
    print_header("SD1.5 alone", "AnimateDiff-Evolved")
    for frames in options.frames:
        models = {
            "SD1.5 alone": model,
            "AnimateDiff-Evolved": in_evolved(model, "long.safetensors"),
            "AnimateDiff's blocks here": in_our_loop(model, ANIMATEDIFF),
            "frames halved three times": in_our_loop(model, HALVED),
            "Lumiere's space-time U-Net": in_our_loop(model, lumiere(SD15, frames)),
        }
        size = frames, options.cells, options.cells, options.steps
        costs = measure({name: partial(sample, m, *size) for name, m in models.items()}, options.rounds)
        print_costs(f"{frames} frames", costs, *list(models)[:2])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--evolved", type=Path, required=True, help="the folder of ComfyUI-AnimateDiff-Evolved")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 80], help="of the clips that are timed")
    parser.add_argument("--cells", type=int, default=16, help="width and height of their latents")
    parser.add_argument("--steps", type=int, default=1, help="of a clip that is timed, default 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-speed", action="store_true", help="do not compare what the clips look like")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        load_packs(options.evolved.resolve(), Path(folder))
        model = random_model()
        if not options.only_speed:
            write_files(Path(folder))
            print_differences(model)
        print()
        print_speeds(model, Path(folder), options)


if __name__ == "__main__":
    main()
