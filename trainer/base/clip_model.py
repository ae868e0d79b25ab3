"""CLIP, whole: what it sees in frames and what it reads in prompts, in one space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from ...networks.tensor_file import is_finite
from .features import FeatureModel, load_feature_model
from .openai_clip import Texts, is_torchscript, load_openai_clip
from .tensors import one_sentence
from .tokenizer import clip_tokenizer

VOCABULARY = 49408


@dataclass(frozen=True)
class ClipModel:
    """A frozen CLIP. `images` is its image encoder with the projection."""

    images: FeatureModel
    texts: CLIPTextModelWithProjection | Texts
    tokenizer: CLIPTokenizer

    def of_frames(self, frames: Tensor) -> Tensor:
        """Return embeddings, (n, width) in float32, of the middle square of frames (n, 3, height, width) in [-1, 1]:
        what CLIP's own preparation keeps of a wide picture."""
        return self.images.of_frames(middle_square(frames))

    @torch.no_grad()
    def of_text(self, text: str) -> Tensor:
        """Return the embedding of a prompt, (width,); of more than 77 tokens the first are read."""
        tokens = self.tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
        device = next(self.texts.parameters()).device
        return self.texts(**tokens.to(device)).text_embeds[0].float().cpu()


def middle_square(frames: Tensor) -> Tensor:
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def load_clip(path: Path) -> ClipModel:
    """Return the CLIP in a folder as transformers saves one, or beside the weights file that is named, or in one of
    OpenAI's own files; nothing is downloaded.

    Raises:
        FileNotFoundError, ValueError: it is no such folder, no CLIP, damaged, or lacks weights.
    """
    if path.is_file() and is_torchscript(path):
        vision, texts = load_openai_clip(path)
        return ClipModel(FeatureModel(path.stem, vision, "clip"), texts, clip_tokenizer())
    folder = path.parent if path.is_file() else path
    images = load_feature_model(folder, "--clip")
    if images.kind != "clip":
        raise ValueError(f"--clip {path} is a {images.kind}, without a text encoder; give a whole CLIP")
    safe = {"local_files_only": True, "use_safetensors": True, "attn_implementation": "sdpa"}
    with one_sentence(f"--clip {path} cannot be used"):
        texts, report = CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True, **safe)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {len(missing)} weights, first {missing[0]}")
        if bad := [name for name, tensor in texts.state_dict().items() if not is_finite(tensor)]:
            raise ValueError(f"it holds NaN or infinity in {bad[0]}")
        if texts.config.vocab_size != VOCABULARY:
            raise ValueError(f"its text encoder has {texts.config.vocab_size} tokens and CLIP's has {VOCABULARY}")
    return ClipModel(images, texts.eval().requires_grad_(False), clip_tokenizer())


def consistency(embeddings: Tensor) -> float:
    """Return the temporal consistency mean_f cos(E(x^f), E(x^{f+1})), -1 to 1: 1 for a still clip.

    CLIP-Temp, or frame consistency, of HiGen's and the few-shot paper's tables, which multiply it by 100.

    Args:
        embeddings: of a clip's frames, (frames, width), two or more.
    """
    return F.cosine_similarity(embeddings[:-1], embeddings[1:], dim=-1).mean().item()


def clipsim(embeddings: Tensor, text: Tensor) -> float:
    """Return CLIPSIM mean_f cos(E(x^f), T(prompt)), -1 to 1, whatever the order of the frames (Wu et al. 2021, arXiv
    2104.14806); CLIP-Score is a hundred times that.

    Args:
        embeddings: of a clip's frames, (frames, width).
        text: embedding of its prompt, (width,).
    """
    return F.cosine_similarity(embeddings, text[None], dim=-1).mean().item()
