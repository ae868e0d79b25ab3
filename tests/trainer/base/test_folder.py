"""Diffusers folders with something missing, changed or damaged: each is refused in a sentence that says what."""

import json
import shutil

import pytest
import tiny_run
import torch
from safetensors.torch import load_file, save_file
from stillmotion.trainer.base.load import encode_captions, load_base


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "base"
    torch.manual_seed(0)
    tiny_run.write_base(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy whose large files are links, to be replaced and not written into."""
    return shutil.copytree(whole, tmp_path / "base", copy_function=lambda a, b: (tmp_path / b).symlink_to(a))


def replace(file, data):
    file.unlink()
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def config(part, **changes):
    def change(folder):
        file = folder / part / "config.json"
        replace(file, json.dumps(json.loads(file.read_text()) | changes))

    return change


def lacks(part, file, name):
    def change(folder):
        tensors = load_file(folder / part / file)
        tensors.pop(next(key for key in sorted(tensors) if name in key))
        (folder / part / file).unlink()
        save_file(tensors, folder / part / file)

    return change


def gone(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name):
    return lambda folder: replace(folder / name, (folder / name).read_bytes()[:5000])


DIFFUSERS = "diffusion_pytorch_model.safetensors"
TOKENIZER = "tokenizer/tokenizer.json"


@pytest.mark.parametrize(
    "damage, message",
    [
        (gone(TOKENIZER), "its tokenizer "),
        (lambda f: replace(f / TOKENIZER, "{}"), "its tokenizer cannot be read"),
        (
            lacks("text_encoder", "model.safetensors", "token_embedding"),
            "its CLIP text encoder lacks .*token_embedding",
        ),
        (lacks("unet", DIFFUSERS, "conv_in.weight"), r"its U-Net lacks conv_in.weight \(1 in all\)"),
        (lacks("vae", DIFFUSERS, "weight"), r"its autoencoder lacks .* \(1 in all\)"),
        (config("unet", layers_per_block=-1), "its U-Net|describes no U-Net"),
        (
            config("unet", layers_per_block=10**9),
            "unet/config.json has layers_per_block 1000000000; it may be at most 64",
        ),
        (config("unet", up_block_types=["UpBlock2D", "UpBlock2D"]), "its U-Net has the unknown"),
        (config("unet", up_block_types=["Evil", "UpBlock2D"]), "unet/config.json describes no U-Net"),
        (config("unet", block_out_channels=[2**62, 64]), "it may be at most"),
        (config("text_encoder", num_hidden_layers=0), "its CLIP text encoder has the unknown"),
        (config("text_encoder", num_hidden_layers=3), "its CLIP text encoder lacks"),
        (config("text_encoder", hidden_size=1024), "its CLIP text encoder|describes no CLIP"),
        (config("text_encoder", hidden_act=7), "describes no CLIP text encoder .its hidden_act is 7"),
        (config("vae", scaling_factor=3.5), "its autoencoder has a scaling_factor of 3.5"),
        (cut("text_encoder/model.safetensors"), "text_encoder/model.safetensors: it cannot be read, for it is damaged"),
        (gone(f"unet/{DIFFUSERS}"), "its folder unet holds no weights"),
        (gone("unet/config.json"), "unet/config.json is not there"),
        (lambda f: replace(f / "unet/config.json", "[1]"), "unet/config.json holds no JSON object"),
        (lambda f: replace(f / "unet/config.json", "[" * 10**5), "unet/config.json cannot be read .its lists"),
        (lambda f: replace(f / "unet/config.json", b"\xff\xfe{"), "unet/config.json cannot be read"),
        (lambda f: replace(f / "vae" / DIFFUSERS, b"<html>"), "it cannot be read: it is a web page"),
    ],
)
def test_each_damage_is_said_with_the_file_it_is_in(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=f"{folder} cannot be used as a base: .*({message})") as caught:
        load_base(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_scheduler_that_cannot_be_read_is_named(folder):
    (folder / "scheduler").mkdir()
    for text in ("no json", '{"beta_schedule": 7}'):
        (folder / "scheduler/scheduler_config.json").write_text(text)
        with pytest.raises(ValueError, match="scheduler/scheduler_config.json"):
            load_base(folder)


def test_byte_order_marks_are_read_over(folder):
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_bytes(b'\xef\xbb\xbf{"prediction_type": "v_prediction"}')
    file = folder / "unet/config.json"
    replace(file, b"\xef\xbb\xbf" + file.read_bytes())
    assert load_base(folder).prediction == "v_prediction"


def equal(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_a_folder_of_the_fp16_variant_alone_is_read(folder, whole):
    for part, name in (("unet", DIFFUSERS), ("vae", DIFFUSERS), ("text_encoder", "model.safetensors")):
        (folder / part / name).rename(folder / part / name.replace(".safetensors", ".fp16.safetensors"))
    assert equal(load_base(folder).unet, load_base(whole).unet)


def test_pickled_weights_of_old_folders_are_read_by_the_same_gate(folder, whole):
    tensors = load_file(folder / "unet" / DIFFUSERS)
    (folder / "unet" / DIFFUSERS).unlink()
    torch.save(tensors, folder / "unet/diffusion_pytorch_model.bin")
    assert equal(load_base(folder).unet, load_base(whole).unet)


def test_code_that_a_configuration_names_is_not_looked_for(folder, whole, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("something was to be fetched"))
    names = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "auto_map")
    config("text_encoder", **dict.fromkeys(names, "evil/kernel"))(folder)
    config("unet", _class_name="EvilModel", quantization_config={"quant_method": "evil"})(folder)
    found, expected = (
        encode_captions(load_base(path), ["a red square on a table", "a dog"]) for path in (folder, whole)
    )
    assert torch.equal(found, expected) and not torch.equal(found[0], found[1])


def test_names_of_before_diffusers_018_are_read(folder, tmp_path):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(8,) * 4, norm_num_groups=8)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(folder / "vae" / DIFFUSERS).items():
        for new, old in former.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, folder / "vae" / DIFFUSERS)
    assert equal(load_base(folder).vae, vae)
