"""CLIP's tokenizer for checkpoints that bring none, that is for single files."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
"""How many of the file's merges CLIP uses; the file holds more, below a first line that is a comment."""


def clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer, equal to that of Stable Diffusion 1.5, from the merges that open_clip_torch ships."""
    merges = read_merges(merges_file())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary(merges)), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def merges_file() -> Path:
    """Find CLIP's merges in open_clip_torch; the package itself is not imported."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "A checkpoint in one file brings no tokenizer; install the one of CLIP with `pip install open_clip_torch`,"
            " or give a diffusers folder, which has its own."
        )
    return Path(found.submodule_search_locations[0], "bpe_simple_vocab_16e6.txt.gz")


def read_merges(path: Path) -> list[str]:
    """Return the pairs that CLIP joins, in order of preference, each as "left right"."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : MERGES + 1]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Return token -> id: the bytes, the bytes at the end of a word, the joined pairs, start and end."""
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(m.replace(" ", "") for m in merges), START, END]
    return {word: number for number, word in enumerate(words)}


def byte_symbols() -> list[str]:
    """Return the printable character that stands for each byte, in CLIP's order: printable bytes first.

    Source: the byte-level encoding of GPT-2 (Radford et al. 2019).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]
