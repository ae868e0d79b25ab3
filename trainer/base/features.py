"""What an image model sees in frames, for the appearance factor: DINOv2, or CLIP's image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...networks.json_text import read_config
from ...networks.tensor_file import is_finite
from .tensors import STRANGE, told

SIDE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of RGB in [0, 1] that the models were trained with."""

KINDS = "dinov2", "clip", "clip_vision_model"


@dataclass(frozen=True)
class FeatureModel:
    """A frozen image model; `name` is what motion files call it."""

    name: str
    model: nn.Module
    kind: str

    @torch.no_grad()
    def of_frames(self, frames: Tensor) -> Tensor:
        """Return the features of frames (n, 3, height, width) in [-1, 1], (n, width) in float32: the class token of
        DINOv2, the image embedding of CLIP, of 224 x 224 pixels."""
        weight = next(self.model.parameters())
        numbers = IMAGENET if self.kind == "dinov2" else CLIP
        mean, std = (torch.tensor(x, device=weight.device).view(3, 1, 1) for x in numbers)
        pixels = F.interpolate(
            frames.to(weight.device).float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
        )
        out = self.model(pixel_values=(((pixels + 1) / 2 - mean) / std).to(weight))
        return (out.image_embeds if self.kind != "dinov2" else out.last_hidden_state[:, 0]).float().cpu()


LATENT = Path("latent")
"""In the place of a folder: features of the latents, for which no model is needed."""


def feature_model(features: Path) -> FeatureModel | None:
    """Return the image model in a folder, None for LATENT. Errors as of `load_feature_model`."""
    return None if features == LATENT else load_feature_model(features)


def load_feature_model(folder: Path, flag: str = "--features") -> FeatureModel:
    """Return the image model in a folder as transformers saves one; nothing is downloaded.

    Args:
        flag: the option that named it, for errors.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no DINOv2 and no CLIP, or damaged, or lacks weights, in whose place transformers would put
            random ones.
    """
    from transformers import CLIPVisionModelWithProjection, Dinov2Model

    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{flag} {folder} is no folder with an image model and its config.json; give one of DINOv2 or CLIP"
            + ", or latent" * (flag == "--features")
        )
    try:
        kind = read_config(config)["model_type"]
        if kind not in KINDS:
            raise ValueError(f"its model_type is {kind}; DINOv2 (dinov2) and CLIP (clip) can be used")
        loader = Dinov2Model if kind == "dinov2" else CLIPVisionModelWithProjection
        # of pickled weights and of code that the configuration names nothing is opened
        safe = {"local_files_only": True, "use_safetensors": True, "attn_implementation": "sdpa"}
        model, report = loader.from_pretrained(folder, output_loading_info=True, **safe)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {len(missing)} weights, first {missing[0]}")
        if bad := [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]:
            raise ValueError(f"it holds NaN or infinity in {bad[0]}")
    except (*STRANGE, ValueError) as error:
        raise ValueError(f"{flag} {folder} cannot be used: {told(error)}") from error
    return FeatureModel(folder.resolve().name, model.eval().requires_grad_(False), kind)
