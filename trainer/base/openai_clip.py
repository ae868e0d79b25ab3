"""OpenAI's own files of CLIP, as `ViT-B-32.pt`: TorchScript archives, read by open_clip."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from .tensors import one_sentence

CONTEXT = 77


class Seen(NamedTuple):
    image_embeds: Tensor


class Read(NamedTuple):
    text_embeds: Tensor


class Images(nn.Module):
    """Its image encoder, called as that of transformers is."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor) -> Seen:
        return Seen(self.clip.encode_image(pixel_values))


class Texts(nn.Module):
    """Its text encoder, called as that of transformers is; what is behind the end of a prompt is zero."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor, **_) -> Read:
        return Read(self.clip.encode_text(F.pad(input_ids, (0, CONTEXT - input_ids.shape[1]))))


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a program of TorchScript with its weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def load_openai_clip(path: Path) -> tuple[Images, Texts]:
    """Return both encoders of one of OpenAI's files, in float32: its weights, in open_clip's network.

    Raises:
        ValueError: it is damaged, or no CLIP.
    """
    import open_clip

    with one_sentence(f"--clip {path} cannot be used; of single files, OpenAI's own can, as ViT-B-32.pt"):
        # a path from the root is the name of no model, which would be fetched
        clip = open_clip.load_openai_model(str(path.resolve()), precision="fp32", device="cpu")
    clip = clip.eval().requires_grad_(False)
    return Images(clip), Texts(clip)
