"""`toy`: makes a small Stable Diffusion checkpoint, on any machine, to learn and test with."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Generator

from ..base.ldm_checkpoint import write_checkpoint
from ..base.load import Base
from ..base.tokenizer import clip_tokenizer
from ..config import recorded, refuse_existing
from ..options import ToyOptions
from ..show.pictures import contact_sheet
from ..toy.autoencoder import train_autoencoder
from ..toy.drawing import Scene, split_scenes, to_bytes
from ..toy.judge import accuracy
from ..toy.parts import fill_silent_layers, new_text_encoder, new_unet
from ..toy.training import PICTURE, Recipe, sample_pictures, train_unet

log = logging.getLogger("stillmotion")

COLUMNS, ROWS = 8, 5
"""The contact sheet shows that many pictures in a row, and that many rows each of seen and held-out captions."""


def make_toy(options: ToyOptions) -> None:
    """Train an autoencoder, then a U-Net, and write the checkpoint and a contact sheet beside it."""
    refuse_existing(options.overwrite, options.output, *([sheet_of(options.output)] if options.steps else []))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = new_toy(options, device)

    def save_to(path: Path, unet: UNet2DConditionModel) -> None:
        write_checkpoint(path, unet, base.text_encoder, base.vae, toy_metadata(options))

    unfinished = options.output.with_stem(options.output.stem + "-unfinished")

    if options.steps:
        recipe = Recipe(options.steps, options.batch_size, options.learning_rate)
        seen, _ = split_scenes()
        base.unet = train_unet(
            base, seen, recipe, Generator().manual_seed(options.seed + 1), partial(save_to, unfinished)
        )
    save_to(options.output, base.unet)
    unfinished.unlink(missing_ok=True)
    log.info("wrote %s, a model to learn and test with", options.output)
    if options.steps:
        show_toy(base, options)


def new_toy(options: ToyOptions, device: str) -> Base:
    """Return the toy before its U-Net is trained; with 0 steps its autoencoder is not trained either."""
    vae = train_autoencoder(options.autoencoder_steps if options.steps else 0, options.seed, device)
    generator = Generator().manual_seed(options.seed)
    unet, text_encoder = new_unet(options.unet, generator), new_text_encoder(generator)
    if not options.steps:
        fill_silent_layers(unet, generator)
    return Base(unet.to(device), text_encoder.to(device), clip_tokenizer(), vae)


def toy_metadata(options: ToyOptions) -> dict[str, str]:
    """Describe the file by the model metadata standard (modelspec 1.0.0), and how it was made."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "Stillmotion toy",
        "modelspec.description": "A small model to learn and test with. It draws one coloured shape on a coloured"
        " ground, as in 'a red circle on a blue background', and says nothing about the quality of any method.",
        "modelspec.resolution": f"{PICTURE}x{PICTURE}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "Apache-2.0",
        "stillmotion.toy": json.dumps(recorded(options)),
    }


def show_toy(base: Base, options: ToyOptions) -> None:
    """Write the contact sheet and log how often colour, shape and ground are those of the caption."""
    rows = []
    for name, scenes in zip(("seen", "held out"), split_scenes()):
        order = torch.randperm(len(scenes), generator=Generator().manual_seed(options.seed))
        shown = [scenes[i] for i in order[: COLUMNS * ROWS]]
        pictures = sample_pictures(base, [scene.caption for scene in shown], options.seed).cpu()
        right = accuracy(pictures, shown)
        log.info("%s captions: %s", name, ", ".join(f"{part} right in {share:.0%}" for part, share in right.items()))
        frames = to_bytes(pictures)
        rows += [(label(name, shown[i : i + COLUMNS]), frames[i : i + COLUMNS]) for i in range(0, len(shown), COLUMNS)]
    path = sheet_of(options.output)
    contact_sheet(rows, path, COLUMNS)
    log.info("wrote %s, its contact sheet", path)


def sheet_of(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".png")


def label(name: str, scenes: list[Scene]) -> str:
    """Return the captions of a row of pictures in short, from left to right, one a line."""
    return "\n".join([f"{name}:", *(f"{scene.colour} {scene.shape} on {scene.ground}" for scene in scenes)])
