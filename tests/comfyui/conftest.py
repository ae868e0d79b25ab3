"""A real ComfyUI in this process: $COMFYUI_PATH, else comfy-cli's default workspace; these tests skip without one."""

import os
import sys
from pathlib import Path

import pytest

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
PACK = Path(__file__).resolve().parents[2]

SHAPES = {
    "sd15": {"transformer_depth": [1, 1], "context_dim": 768, "num_heads": 8, "num_head_channels": -1},
    "sd21": {"transformer_depth": [1, 1], "context_dim": 1024, "num_heads": -1, "num_head_channels": 16},
    "sdxl": {"transformer_depth": [0, 2], "context_dim": 2048, "num_heads": -1, "num_head_channels": 16},
}


@pytest.fixture(scope="session", autouse=True)
def comfyui():
    """The checkout's folder, with its modules importable; its top-level names are `nodes`, `utils`, `server` …"""
    if not (COMFYUI / "comfy").is_dir():
        pytest.skip(f"no ComfyUI at {COMFYUI}; set COMFYUI_PATH to a checkout")
    sys.path[:] = [str(COMFYUI)] + [p for p in sys.path if Path(p or ".").resolve() not in (PACK, PACK.parent)]
    import comfy.cli_args
    import comfy.options  # noqa: F401

    comfy.cli_args.args.cpu = True  # before anything imports comfy.model_management
    import utils.extra_config  # noqa: F401  before nodes, which puts another `utils` on the path

    return COMFYUI


def unet_config(family, widths=(32, 64)):
    """Levels so wide, in the family's own shape."""
    shape = SHAPES[family]
    finest, coarsest = shape["transformer_depth"]
    depths = [*[finest] * (len(widths) - 1), coarsest]
    config = {
        **shape,
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "num_res_blocks": [1] * len(widths),
        "channel_mult": tuple(width // 32 for width in widths),
        "use_spatial_transformer": True,
        "transformer_depth": depths,
        "transformer_depth_output": [depth for depth in depths for _ in range(2)],
        "transformer_depth_middle": depths[-1],
        "use_linear_in_transformer": family != "sd15",
        "legacy": False,
    }
    return config | ({"num_classes": "sequential", "adm_in_channels": 64} if family == "sdxl" else {})


@pytest.fixture
def small_model():
    """Makes a MODEL of a family with a small random U-Net, on the CPU."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    kinds = {"sd15": comfy.supported_models.SD15, "sd21": comfy.supported_models.SD20}

    def make(family="sd15", dtype=torch.float32, widths=(32, 64)):
        config = kinds[family]({**unet_config(family, widths), "dtype": dtype, "image_size": 32})
        config.set_inference_dtype(dtype, None)
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
        randomise(model.diffusion_model)
        return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))

    return make


WAN = {"dim": 48, "ffn_dim": 64, "freq_dim": 32, "text_dim": 16, "num_heads": 2, "num_layers": 2, "text_len": 8}


@pytest.fixture
def video_model(comfyui):
    """Makes a MODEL of one of ComfyUI's video architectures, small and random."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    def make(kind, base, **sizes):
        config = getattr(comfy.supported_models, kind)({**sizes, "dtype": torch.float32})
        config.set_inference_dtype(torch.float32, None)
        model = getattr(comfy.model_base, base)(config, device="cpu")
        randomise(model.diffusion_model)
        return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))

    return make


@pytest.fixture
def wan(video_model):
    return video_model("WAN21_T2V", "WAN21", image_model="wan2.1", model_type="t2v", in_dim=16, out_dim=16, **WAN)


@pytest.fixture(scope="session")
def small_unet():
    """Makes a bare random U-Net of a family's shape."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    def make(family="sd15", dtype=torch.float32, widths=(32, 64)):
        config, operations = unet_config(family, widths), comfy.ops.disable_weight_init
        return randomise(UNetModel(**config, dtype=dtype, device="cpu", operations=operations).eval())

    return make


def randomise(module, std=0.08):
    """ComfyUI leaves weights as the memory was; random ones make every path count."""
    import torch

    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=std)
    return module.requires_grad_(False)


@pytest.fixture(scope="session")
def pack():
    """Our nodes by id, loaded as the host loads a custom node."""
    import asyncio

    import nodes

    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    return {id: node for id, node in nodes.NODE_CLASS_MAPPINGS.items() if id.startswith("Stillmotion")}
