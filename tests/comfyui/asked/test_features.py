"""Features by the host's image models are those that a motion file is trained on."""

import inspect
import json

import pytest
import torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO = {"layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "image_size": 518, "model_type": "dinov2"}
CLIP = {"num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}


def dino(folder):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**SIZES, image_size=518, patch_size=14)).save_pretrained(folder)
    image = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {
        **SIZES,
        **image,
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": False,
        "image_size": 518,
        "model_type": "dinov2",
    }


def clip(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {**SIZES, "intermediate_size": 64, "projection_dim": 24, "image_size": 224, "patch_size": 32}
    CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, hidden_act="quick_gelu")).save_pretrained(folder)
    return {**sizes, **CLIP}


@pytest.mark.parametrize("kind", [dino, clip])
def test_comfyui_and_the_trainer_measure_the_same_look(comfyui, tmp_path, kind):
    import comfy.clip_vision
    import comfy.image_encoders.dino2
    from safetensors.torch import load_file
    from stillmotion.nodes.features import features_name, image_features
    from stillmotion.trainer.base.features import load_feature_model

    config = kind(tmp_path)
    (tmp_path / "host.json").write_text(json.dumps(config), encoding="utf-8")
    vision = comfy.clip_vision.ClipVisionModel(str(tmp_path / "host.json"))
    missing, _ = vision.load_sd(load_file(tmp_path / "model.safetensors"))
    assert not missing
    if kind is dino and "interpolate" not in inspect.getsource(comfy.image_encoders.dino2):
        with pytest.raises(ValueError, match="runs DINOv2 at its own size alone.*update ComfyUI"):
            image_features(vision, torch.rand(2, 96, 128, 3))
        return
    frames = torch.rand(5, 3, 12, 16).repeat_interleave(8, -1).repeat_interleave(8, -2)
    trained = load_feature_model(tmp_path).of_frames(frames * 2 - 1)
    measured = image_features(vision, frames.movedim(1, -1))
    # random networks see nearly the same in all pictures: what counts is how these differ
    different = [features - features.mean(0) for features in (measured, trained)]
    assert torch.cosine_similarity(*different).min() > 0.95
    assert features_name(vision) == kind.__name__
    assert vision.image_size == config["image_size"]
