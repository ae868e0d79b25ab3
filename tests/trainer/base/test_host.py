"""The frozen U-Net in our loop against diffusers' own forward: the same numbers, until something was trained."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Mapping, Queries, Recurrence, Temporal
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.run.export import fresh_inflation

FRAMES = 5
WITH_TEXT, WITHOUT = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
FAMILIES = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
}
PARTS = {
    "attention": InflationConfig(temporal=Temporal(levels=(("attention", "factorised", "stacked"),), middle=True)),
    "convolution": InflationConfig(temporal=Temporal(levels=(("convolution", "transformer"),), middle=True)),
    "frames": InflationConfig(frame_attention=CrossFrames()),
    "gated scan": InflationConfig(recurrence=Recurrence("gated_scan")),
    "paper rnn": InflationConfig(recurrence=Recurrence("paper_rnn")),
    "query lora": InflationConfig(queries=Queries(3)),
    "query matrices": InflationConfig(queries=Queries(None)),
    "mapping": InflationConfig(mapping=Mapping()),
    "few-shot": InflationConfig(Temporal(), CrossFrames(), Recurrence(), Queries(3)),
}


def small_unet(family, dtype=torch.float32):
    fine = WITHOUT if family == "sdxl" else WITH_TEXT
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=(fine[0], WITH_TEXT[0]),
        up_block_types=(WITH_TEXT[1], fine[1]),
        **FAMILIES[family],
    )
    return torch.nn.Module.to(unet, dtype).eval()


def given(unet, family):
    """Sample, timesteps and text of a clip, and what SDXL wants beside them; every frame has its own of each."""
    sample, text = torch.randn(FRAMES, 4, 6, 10), torch.randn(FRAMES, 9, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(FRAMES, 16), "time_ids": torch.rand(FRAMES, 6)} if family == "sdxl" else None
    added = {name: tensor.to(unet.dtype) for name, tensor in added.items()} if added else None
    return (sample.to(unet.dtype), torch.randint(1000, (FRAMES,)), text.to(unet.dtype)), added


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_attached_is_diffusers_forward(family, dtype):
    unet = small_unet(family, dtype)
    rows, added = given(unet, family)
    assert torch.equal(InflatedUNet(unet)(*rows, Clip.of(FRAMES), added), unet(*rows, added_cond_kwargs=added).sample)


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_a_fresh_inflation_is_the_frozen_model(name):
    unet = small_unet("sd15")
    rows, _ = given(unet, "sd15")
    video = InflatedUNet(copy.deepcopy(unet), fresh_inflation(PARTS[name], structure_of(unet), 0))
    assert torch.equal(video(*rows, Clip.of(FRAMES)), unet(*rows).sample)
    torch.nn.init.normal_(next(p for n, p in reversed([*video.inflation.named_parameters()]) if not p.any()))
    assert not torch.equal(video(*rows, Clip.of(FRAMES)), unet(*rows).sample)
