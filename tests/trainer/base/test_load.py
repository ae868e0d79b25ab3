import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from stillmotion.trainer.base.ldm_checkpoint import clip_config, unet_from_ldm, unet_to_ldm, write_checkpoint
from stillmotion.trainer.base.load import decode_latents, encode_captions, encode_frames, load_base, token_ids
from stillmotion.trainer.base.tokenizer import clip_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
PROMPTS = [
    "a red circle on a blue background, swinging from side to side",
    "",
    "Ünïcode — it's 12 o'clock 😀 foo_bar,baz!!  (two   spaces)\nand a line",
    "word " * 90,
]
FAMILIES = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": [1, 2, 3], "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [1, 2, 3],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2, 3],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1536 + 64,
    },
}


BLOCKS = {"down": "Encoder", "up": "Decoder"}


def small_unet(family="sd15", **changes):
    """Three levels of odd shapes, with attention at the lower two."""
    config = {
        "block_out_channels": (64, 128, 192),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**config, **FAMILIES[family], **changes).eval()


@pytest.fixture(scope="module")
def parts():
    """U-Net, text encoder and autoencoder whose weights fp16 holds exactly."""
    torch.manual_seed(1)
    parts = small_unet(), CLIPTextModel(clip_config()), AutoencoderTiny()
    return [part.half().float().eval().requires_grad_(False) for part in parts]


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "small.safetensors"
    write_checkpoint(path, *parts, {"modelspec.title": "small"})
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_of_any_family_comes_back_from_its_ldm_names(family):
    unet = small_unet(family)
    back = unet_from_ldm(unet_to_ldm(unet))
    sample, text = torch.randn(2, 4, 12, 8), torch.randn(2, 5, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(2, 64), "time_ids": torch.rand(2, 6)} if family == "sdxl" else None
    with torch.no_grad():
        expected, got = (u(sample, 7, text, added_cond_kwargs=added).sample for u in (unet, back))
    assert torch.equal(got, expected)


def test_a_checkpoint_in_one_file_gives_back_what_was_written(parts, checkpoint):
    unet, text_encoder, vae = parts
    base = load_base(checkpoint)
    assert (base.family, base.schedule, base.prediction) == ("sd15", "scaled_linear", "epsilon")
    frames = 2 * torch.rand(1, 3, 24, 16) - 1
    latents = encode_frames(base.vae, frames)
    assert torch.equal(latents, vae.encode(frames).latents)
    assert torch.equal(decode_latents(base.vae, latents), vae.decode(latents).sample.clamp(-1, 1))
    text = encode_captions(base, PROMPTS[:2])
    assert torch.equal(text, text_encoder(token_ids(base.tokenizer, PROMPTS[:2])).last_hidden_state)
    sample = torch.randn(2, 4, 12, 8)
    assert torch.equal(base.unet(sample, 7, text).sample, unet(sample, 7, text).sample)


def test_a_base_is_frozen_and_has_the_type_asked_for(checkpoint):
    base = load_base(checkpoint, torch.bfloat16)
    for part in (base.unet, base.text_encoder, base.vae):
        assert not part.training
        assert {(p.dtype, p.requires_grad) for p in part.parameters()} == {(torch.bfloat16, False)}


def test_a_failed_write_keeps_the_file_that_was_there(parts, tmp_path, monkeypatch):
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"old")
    (tmp_path / ".old.safetensors.17.tmp").touch()  # a process was killed while it wrote
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="The disk is full"):
        write_checkpoint(path, *parts, {})
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["old.safetensors"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A diffusers model, small where its loader allows."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("folder")
    config = CLIPTextConfig(hidden_size=768, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    blocks = {f"{way}_block_types": (f"{way.title()}{kind}Block2D",) * 4 for way, kind in BLOCKS.items()}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=8, scaling_factor=0.18215)
    parts = {"unet": small_unet(), "text_encoder": CLIPTextModel(config), "vae": vae, "tokenizer": clip_tokenizer()}
    for name, part in parts.items():
        part.save_pretrained(path / name)
    return path, parts


@pytest.fixture
def folder(saved, tmp_path):
    """It, in a folder where files may be changed; its weights are links."""

    def copy(source, target):
        (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)

    path, parts = saved
    return shutil.copytree(path, tmp_path, copy_function=copy, dirs_exist_ok=True), parts


def test_a_diffusers_folder_gives_back_what_was_saved(folder):
    path, parts = folder
    base = load_base(path)
    for name in ("unet", "text_encoder", "vae"):
        expected, got = parts[name].state_dict(), getattr(base, name).state_dict()
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert torch.equal(token_ids(base.tokenizer, PROMPTS), token_ids(parts["tokenizer"], PROMPTS))


def test_latents_of_stable_diffusions_autoencoder_are_scaled(folder):
    vae = load_base(folder[0]).vae
    frames = torch.rand(1, 3, 16, 8)
    mean = vae.encode(frames).latent_dist.mean
    torch.testing.assert_close(encode_frames(vae, frames), 0.18215 * mean)
    torch.testing.assert_close(decode_latents(vae, 0.18215 * mean), vae.decode(mean).sample.clamp(-1, 1))


def test_a_folder_says_which_prediction_its_unet_makes(folder):
    path, _ = folder
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    assert load_base(path).prediction == "v_prediction"


@pytest.mark.parametrize("content", [None, "{}", "no json", "[]", '{"_class_name": "VQModel"}', '{"_class_name": []}'])
def test_a_folder_whose_autoencoder_is_not_named_is_refused(folder, content):
    file = folder[0] / "vae" / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match="vae/config.json does not name one of AutoencoderKL, AutoencoderTiny"):
        load_base(folder[0])


def test_a_folder_without_a_part_is_refused(folder):
    (folder[0] / "vae").rename(folder[0] / "vea")
    with pytest.raises(ValueError, match="a diffusers model has a folder vae, and this one has none"):
        load_base(folder[0])


def without_one_layer(tensors):
    del tensors["cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.bias"]


def with_a_wrong_shape(tensors):
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(5)


def without_unet(tensors):
    for name in [name for name in tensors if name.startswith("model.")]:
        del tensors[name]


def without_autoencoder(tensors):
    for name in [name for name in tensors if name.startswith("first_stage_model.")]:
        del tensors[name]


def of_another_family(tensors):
    tensors |= {f"model.diffusion_model.{name}": t for name, t in unet_to_ldm(small_unet("sd21")).items()}


def for_inpainting(tensors):
    tensors |= {f"model.diffusion_model.{name}": t for name, t in unet_to_ldm(small_unet(in_channels=9)).items()}


def with_infinity(tensors):
    tensors["model.diffusion_model.time_embed.2.bias"][7] = float("inf")


def with_nan(tensors):
    tensors["first_stage_model.taesd_encoder.0.weight"][0, 0, 1, 1] = float("nan")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_infinity, r"its U-Net holds NaN or infinity in time_embedding.linear_2.bias"),
        (with_nan, r"its autoencoder holds NaN or infinity in encoder.layers.0.weight"),
        (without_one_layer, r"its CLIP text encoder lacks \S*layers.3.mlp.fc1.bias \(1 in all\)"),
        (with_a_wrong_shape, r"its U-Net has in another shape conv_out.bias \(1 in all\)"),
        (without_unet, "it holds no U-Net; give a whole checkpoint"),
        (without_autoencoder, "it holds no autoencoder"),
        (of_another_family, "its family is sd21, and only bases of the SD1.5 family can be trained on"),
        (for_inpainting, "its U-Net takes 9 channels, as for inpainting"),
    ],
)
def test_each_wrong_file_has_its_own_error(checkpoint, tmp_path, damage, message):
    tensors, path = load_file(checkpoint), tmp_path / "wrong.safetensors"
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"wrong.safetensors cannot be used as a base: {message}"):
        load_base(path)


def test_a_truncated_file_is_refused(checkpoint, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.safetensors cannot be used as a base: it cannot be read"):
        load_base(path)


@pytest.mark.parametrize("start", [b"RIFF", b"\x80\x02", b"PK\x03\x04", b"GIF8", b"\x1aE\xdf\xa3", b""])
@pytest.mark.parametrize("name", ["clip.avi", "base.ckpt", "base.safetensors"])
def test_a_file_of_another_kind_is_refused(tmp_path, name, start):
    path = tmp_path / name
    path.write_bytes(start + bytes(range(256)) * 8)
    with pytest.raises(ValueError, match=f"{name} cannot be used as a base: it cannot be read"):
        load_base(path)


def test_a_pickled_object_is_not_opened(tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": os.getcwd}))
    with pytest.raises(ValueError, match="evil.ckpt cannot be used as a base: it cannot be read"):
        load_base(path)


def test_a_pickled_checkpoint_of_tensors_is_read(checkpoint, tmp_path):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": load_file(checkpoint), "global_step": 5}, path)
    assert load_base(path).family == "sd15"


def test_a_missing_base_is_named():
    with pytest.raises(FileNotFoundError, match="no base model at nowhere.safetensors"):
        load_base(Path("nowhere.safetensors"))


def test_a_caption_that_does_not_fit_is_cut_and_named(caplog):
    ids = token_ids(clip_tokenizer(), ["short", "word " * 90])
    assert ids.shape == (2, 77) and ids[1, -1] == 49407
    assert "the rest of 'word word" in caplog.text and len(caplog.records) == 1


@pytest.mark.skipif(not COMFYUI.is_dir(), reason=f"no ComfyUI at {COMFYUI}")
def test_the_tokenizer_is_that_of_comfyui():
    theirs = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    assert clip_tokenizer().get_vocab() == theirs.get_vocab()
    assert torch.equal(token_ids(clip_tokenizer(), PROMPTS), token_ids(theirs, PROMPTS))
