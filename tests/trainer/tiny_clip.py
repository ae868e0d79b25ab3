"""A whole CLIP of random weights, small enough for tests."""

import torch
from transformers import CLIPConfig, CLIPModel


def write_clip(folder, vocabulary=49408):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes["projection_dim"] = 24
    text = {**sizes, "vocab_size": vocabulary, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    torch.manual_seed(0)
    vision = {**sizes, "image_size": 224, "patch_size": 32}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    return folder
