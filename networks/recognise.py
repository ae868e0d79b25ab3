"""What a file of unknown origin is, by its first bytes and by the names of its tensors, and who wants it."""

from __future__ import annotations

import re
from collections.abc import Collection

AGAIN = "download the file itself"

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files of torch begin: zip archives, before torch 1.6 bare pickles."""

BEGINNINGS = (
    (
        b"version https://git-lfs",
        f"a pointer of Git LFS: `git lfs pull` where it came from brings the file, or {AGAIN}",
    ),
    (b"<", f"a web page: {AGAIN}, logged in where that is needed"),
    (b"{", "a text in JSON: give the file of tensors that belongs to it"),
    (b"GGUF", "a GGUF file of quantised weights: give the safetensors file of the model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a sound, a video or a WebP picture"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"7z\xbc\xaf", "compressed by 7-Zip: unpack it first"),
    (b"Rar!", "compressed by RAR: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"%PDF", "a PDF document"),
)

NEEDED = 64
"""Bytes of a file's beginning that are looked at."""


def is_pickled(start: bytes) -> bool:
    return start.startswith(PICKLES)


def kind_of_bytes(start: bytes) -> str | None:
    """Say what a file is that is neither safetensors nor pickled, as "a PNG picture"; None where it is not known.

    Args:
        start: its first bytes, `NEEDED` of them or all.
    """
    if not start:
        return f"empty: {AGAIN} again"
    if start[4:8] == b"ftyp":
        return "a video"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for beginning, kind in BEGINNINGS if text.startswith(beginning)), None)


MOTION_LORA = (
    "a motion LoRA: the Motion LoRA node takes it, or `python -m trainer convert --lora`, which merges it into a module"
)

NAMES = (
    (r"\.temporal_lora\.", "a motion learnt on top of another one: Recurrent Motion LoRA takes it"),
    (r"\.motion_modules\..*lora", MOTION_LORA),
    (r"controlnet_|^control_model\.|\bhint_block|^lllite_", "a ControlNet: Load ControlNet Model takes it"),
    (r"\.motion_modules\.", "a motion module: the STUNet Loader and `python -m trainer convert` take it"),
    (
        r"lora_(unet|te)|[._]lora[._]|lora_(up|down|A|B)\b|\.hada_|\.lokr_",
        "a LoRA of an image model: Load LoRA takes it",
    ),
    (r"^ip_adapter\.|^image_proj\b", "an IP-Adapter, for the nodes of its own pack"),
    (r"[am]sim_embedding\.", "HiGen's release: `python -m trainer convert` makes two files of it"),
    (r"\.time_stack\.|temopral_conv", "a video model of another kind, which nothing here takes"),
    (r"^model\.diffusion_model\.", "an image model's checkpoint: Load Checkpoint and --base take it"),
    (r"^(input_blocks\.0\.0|conv_in)\.weight$", "an image model's U-Net alone: Load Diffusion Model takes it"),
    (r"^(model\.)?(double|joint|transformer|single)_?blocks\.", "an image model that is no Stable Diffusion 1.5"),
    (r"^(encoder|decoder|first_stage_model|taesd_\w+)\.", "an autoencoder alone: Load VAE takes it"),
    (
        r"text_model\.encoder\.|^cond_stage_model\.|^transformer\.resblocks\.",
        "a text encoder alone: Load CLIP takes it",
    ),
    (r"^emb_params$|^string_to_param|^clip_[lg]$", "a textual inversion: a prompt names it, as embedding:name"),
    (r"^body\.|^model\.\d+\.(weight|sub)", "an upscale model: Load Upscale Model takes it"),
)


def kind_of_names(names: Collection[str]) -> str | None:
    """Say what tensors of these names are and which node or command takes them; None where it is not known."""
    patterns = ((re.compile(pattern), kind) for pattern, kind in NAMES)
    return next((kind for pattern, kind in patterns if any(map(pattern.search, names))), None)
