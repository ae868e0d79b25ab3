"""What people feed a loader by mistake is told what it is."""

import pytest
from stillmotion.networks.recognise import kind_of_bytes, kind_of_names


@pytest.mark.parametrize(
    "start, words",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\xef\xbb\xbf<html>", "a web page"),
        (b'{"error": "401"}', "JSON"),
        (b"\x00\x00\x00\x18ftypmp42", "a video"),
        (b"\x89PNG\r\n", "PNG"),
        (b"\x1f\x8b\x08", "unpack it"),
    ],
)
def test_by_first_bytes(start, words):
    assert words in kind_of_bytes(start)


def test_other_bytes_are_not_guessed_at():
    assert kind_of_bytes(b"\x01\x02\x03\x04") is None


@pytest.mark.parametrize(
    "name, words",
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "Load LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "Load LoRA"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "Load LoRA"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.to_q_lora.down.weight", "convert --lora"),
        ("down_blocks.0.motion_modules.0.norm.weight", "STUNet Loader"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Load Checkpoint"),
        ("input_blocks.0.0.weight", "Load Diffusion Model"),
        ("conv_in.weight", "Load Diffusion Model"),
        ("encoder.down.0.block.0.norm1.weight", "Load VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "Load CLIP"),
        ("control_model.input_hint_block.0.weight", "Load ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "Load ControlNet"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("emb_params", "textual inversion"),
        ("double_blocks.0.img_attn.proj.weight", "no Stable Diffusion 1.5"),
        ("msim_embedding.0.weight", "convert"),
        ("input_blocks.1.1.time_stack.0.attn1.to_q.weight", "video model"),
    ],
)
def test_by_names(name, words):
    assert words in kind_of_names([name])


def test_other_names_are_not_guessed_at():
    assert kind_of_names(["weight"]) is None
