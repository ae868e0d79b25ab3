"""What an image model sees in frames: the class token of DINOv2, the image embedding of CLIP; and folders of others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stillmotion.trainer.base.features import CLIP, IMAGENET, LATENT, feature_model, load_feature_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_dino(folder):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**SIZES, image_size=224, patch_size=32))
    model.save_pretrained(folder)
    return model.eval()


def write_clip(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 64, "projection_dim": 24, "image_size": 224, "patch_size": 32}
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("write, numbers, width", [(write_dino, IMAGENET, 32), (write_clip, CLIP, 24)])
def test_frames_are_seen_at_224_with_the_models_own_numbers(tmp_path, write, numbers, width):
    model = write(tmp_path / "eyes")
    look, frames = load_feature_model(tmp_path / "eyes"), torch.rand(3, 3, 224, 224) * 2 - 1
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in numbers)
    out = model(pixel_values=((frames + 1) / 2 - mean) / std)
    expected = out.image_embeds if write is write_clip else out.last_hidden_state[:, 0]
    torch.testing.assert_close(look.of_frames(frames), expected, rtol=0, atol=1e-5)
    assert look.of_frames(frames[..., :48, :96]).shape == (3, width) and look.name == "eyes"


def test_latent_is_no_folder(tmp_path):
    assert feature_model(LATENT) is None
    with pytest.raises(FileNotFoundError, match="no folder with an image model and its config.json"):
        feature_model(tmp_path)


def damaged(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "query.weight" in name)
    change(tensors, name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def drop(tensors, name):
    del tensors[name]


def poison(tensors, name):
    tensors[name][0, 0] = float("nan")


@pytest.mark.parametrize("change, said", [(drop, "it lacks 1 weights, first"), (poison, "it holds NaN or infinity in")])
def test_weights_that_are_missing_or_no_numbers_are_refused(tmp_path, change, said):
    """transformers would put random ones in the place of the former."""
    write_dino(tmp_path)
    damaged(tmp_path, change)
    with pytest.raises(ValueError, match=rf"cannot be used: {said} encoder\.layer\.0\..*weight$"):
        load_feature_model(tmp_path)


@pytest.mark.parametrize("config", ["{}", "[", json.dumps({"model_type": "resnet"}), json.dumps([1])])
def test_another_model_is_refused_in_one_sentence(tmp_path, config):
    write_dino(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="^--features .* cannot be used: "):
        load_feature_model(tmp_path)
