"""The toy's checkpoint in ComfyUI's own loader, and checkpoints in ComfyUI's own modules through our reader."""

import pytest
import torch

CAPTION = "a red circle on a blue background, swinging from side to side"
HEADS = {
    "sd15": {"context_dim": 768, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False},
    "sd21": {"context_dim": 1024, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True},
    "sdxl": {
        "context_dim": 2048,
        "num_heads": -1,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 1600,
    },
}


def randomise(module):
    """Fresh weights leave out whole branches; these make every path count."""
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.05)
    return module.half().float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(comfyui, tmp_path_factory):
    """A toy of the smallest size in which nothing is zero."""
    from diffusers import AutoencoderTiny
    from stillmotion.trainer.base.ldm_checkpoint import clip_config, write_checkpoint
    from stillmotion.trainer.toy.parts import new_unet
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    unet = randomise(new_unet("small", torch.Generator().manual_seed(0)))
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    write_checkpoint(path, unet, CLIPTextModel(clip_config()), AutoencoderTiny(), {})
    return path


@pytest.fixture(scope="module")
def host(checkpoint):
    """MODEL, CLIP and VAE as CheckpointLoaderSimple makes them."""
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)[:3]


@pytest.fixture(scope="module")
def base(checkpoint):
    from stillmotion.trainer.base.load import load_base

    return load_base(checkpoint)


def test_comfyui_knows_it_as_a_model_of_the_sd15_family(host):
    import comfy.model_base
    import comfy.supported_models

    model, _, vae = host
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    assert model.model.model_type == comfy.model_base.ModelType.EPS
    assert type(vae.first_stage_model).__name__ == "TAESD"


def test_both_hosts_read_a_caption_alike(host, base):
    from stillmotion.trainer.base.load import encode_captions

    _, clip, _ = host
    expected = clip.encode_from_tokens(clip.tokenize(CAPTION))
    torch.testing.assert_close(encode_captions(base, [CAPTION]), expected.float(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_both_hosts_predict_the_same_noise(host, base):
    sample, times, text = torch.randn(3, 4, 8, 10), torch.tensor([3.0, 500, 990]), torch.randn(3, 77, 768)
    expected = host[0].model.diffusion_model.float()(sample, times, context=text)
    got = base.unet(sample, times, text).sample
    assert got.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_both_hosts_mean_the_same_by_a_latent(host, base):
    from stillmotion.trainer.base.load import decode_latents, encode_frames

    vae, raw = host[2], torch.randn(2, 4, 5, 6)
    picture = vae.decode(raw)
    ours = decode_latents(base.vae, 0.18215 * raw).permute(0, 2, 3, 1) / 2 + 0.5
    torch.testing.assert_close(ours, picture.float(), atol=1e-4, rtol=0)
    latents = encode_frames(base.vae, 2 * picture.permute(0, 3, 1, 2) - 1)
    torch.testing.assert_close(latents, 0.18215 * vae.encode(picture).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_a_unet_of_any_family_is_the_same_in_both_hosts(family):
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from stillmotion.trainer.base.ldm_checkpoint import unet_from_ldm

    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=64,
        num_res_blocks=[1, 1],
        channel_mult=(1, 2),
        transformer_depth=[0, 2],
        transformer_depth_output=[0, 0, 2, 2],
        transformer_depth_middle=2,
        use_spatial_transformer=True,
        legacy=False,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
        **HEADS[family],
    )
    randomise(unet)
    sample, text, times = torch.randn(2, 4, 6, 8), torch.randn(2, 7, HEADS[family]["context_dim"]), torch.ones(2)
    time_ids, pooled = 100 * torch.rand(2, 6), torch.randn(2, 64)
    y = torch.cat([pooled, sinusoids(time_ids)], dim=1) if family == "sdxl" else None
    added = {"text_embeds": pooled, "time_ids": time_ids} if family == "sdxl" else None
    got = unet_from_ldm(unet.state_dict())(sample, times, text, added_cond_kwargs=added).sample
    torch.testing.assert_close(got, unet(sample, times, context=text, y=y), atol=1e-4, rtol=1e-4)


def sinusoids(time_ids):
    from comfy.ldm.modules.diffusionmodules.openaimodel import timestep_embedding

    return timestep_embedding(time_ids.flatten(), 256).reshape(len(time_ids), -1)


@torch.no_grad()
def test_stable_diffusions_autoencoder_is_the_same_in_both_hosts():
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from stillmotion.trainer.base.ldm_checkpoint import autoencoder_from_ldm
    from stillmotion.trainer.base.load import decode_latents, encode_frames

    config = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    config |= {"ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    theirs = randomise(AutoencoderKL(embed_dim=4, ddconfig=config))
    ours = autoencoder_from_ldm(theirs.state_dict())
    frames = 2 * torch.rand(2, 3, 24, 16) - 1
    mean = theirs.quant_conv(theirs.encoder(frames)).chunk(2, dim=1)[0]
    torch.testing.assert_close(encode_frames(ours, frames), 0.18215 * mean, atol=1e-4, rtol=0)
    expected = theirs.decode(mean).clamp(-1, 1)
    torch.testing.assert_close(decode_latents(ours, 0.18215 * mean), expected, atol=1e-4, rtol=0)
