"""Clips of a motion file for a list of prompts and several seeds, one after the other into a folder, resumable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...networks.atomic import write_bytes
from ...networks.motion_file import read_motion_info
from ..base.ground import read_ground
from ..base.load import Base, encode_captions
from ..clips.cache import content_hash
from ..clips.captions import encoding_of, object_in
from ..show.progress import counted, working
from .compare import load_motion
from .lock import locked
from .over import with_ground
from .previews import decode_clip
from .sample import Sampling, sample_clip, starting_noise

CLIPS = "clips"


@dataclass(frozen=True)
class Generation:
    """What to sample: each prompt with each seed from 0 on, `frames` of `size` (width, height) in pixels.

    `over`: the motion model that `motion` was learnt on top of.
    """

    motion: Path
    base: Path
    prompts: tuple[str, ...]
    seeds: int
    frames: int
    size: tuple[int, int]
    steps: int
    guidance: float
    over: Path | None = None


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file that are not empty: UTF-8, or UTF-16 with its mark as PowerShell writes it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no text, or has no such line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--prompts {path} is not a file; give a text file with a prompt in each line")
    data = path.read_bytes()
    try:
        lines = [line.strip() for line in data.decode(encoding_of(data)).splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is no UTF-8 text: {error}") from error
    if not any(lines):
        raise ValueError(f"--prompts {path} holds no prompt; write one in each line")
    return tuple(filter(None, lines))


def generate(wanted: Generation, base: Base, folder: Path) -> Path:
    """Sample the clips that are not in the folder CLIPS of `folder` yet, and return that one: a set, with captions.

    Frames are PNGs, so that nothing but the model is measured in them. A clip that has its caption is whole.

    Args:
        base: what lies at `wanted.base`.

    Raises:
        ValueError: the clips there are of other settings, or the motion file cannot be used.
    """
    with locked(folder):
        check_record(wanted, folder / "generated.json")
        left = [
            (n, s) for n, s in product(range(len(wanted.prompts)), range(wanted.seeds)) if not is_made(folder, n, s)
        ]
        if left:
            base = with_ground(base, read_ground(wanted.over)) if wanted.over else base
            sample_all(wanted, base, left, folder)
    return folder / CLIPS


def sample_all(wanted: Generation, base: Base, left: list[tuple[int, int]], folder: Path) -> None:
    """Sample clips by number of prompt and seed; the same noise for the same seed, whatever the prompt."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, info = load_motion(base, wanted.motion).to(device), read_motion_info(wanted.motion)
    as_trained = {"schedule": info.schedule, "prediction": info.prediction, "zero_snr": base.zero_snr}
    how = Sampling(wanted.steps, wanted.guidance, **as_trained)
    cells = wanted.size[0] // 8, wanted.size[1] // 8
    with working("generating", len(left), "clip", leave=True) as bar:
        for number, seed in counted(left, bar):
            with torch.no_grad():
                text = encode_captions(base, [wanted.prompts[number], ""])
            noise = starting_noise(seed, wanted.frames, cells).to(device)
            frames = decode_clip(base.vae, sample_clip(model, *text, noise, how, progress=False))
            write_clip(clip_folder(folder, number, seed), frames, wanted.prompts[number])


def write_clip(clip: Path, frames: np.ndarray, prompt: str) -> None:
    """Write a folder of PNGs, and then the prompt beside it."""
    clip.mkdir(parents=True, exist_ok=True)
    for place, frame in enumerate(frames):
        Image.fromarray(frame).save(clip / f"{place:04}.png")
    write_bytes(clip.with_suffix(".txt"), prompt.encode())


def clip_folder(folder: Path, number: int, seed: int) -> Path:
    return folder / CLIPS / f"prompt {number:04} seed {seed}"


def is_made(folder: Path, number: int, seed: int) -> bool:
    return clip_folder(folder, number, seed).with_suffix(".txt").is_file()


def check_record(wanted: Generation, path: Path) -> None:
    """Write how the clips are made, or raise ValueError where those that are there were made otherwise."""
    read_motion_info(wanted.motion)  # says what is wrong with it, if anything is
    record = json.loads(json.dumps({**asdict(wanted), "motion": content_hash(wanted.motion)}, default=str))
    if path.is_file():
        before = read_record(path)
        if other := [name for name in record if before.get(name) != record[name]]:
            raise ValueError(
                f"{path.parent} holds clips of other settings ({', '.join(other)}); choose another --output"
            )
    write_bytes(path, json.dumps(record, ensure_ascii=False, indent=1).encode())


def read_record(path: Path) -> dict:
    try:
        return object_in(path.read_text(encoding="utf-8"), "it")
    except ValueError as error:
        raise ValueError(
            f"{path}, which says how the clips beside it were made, cannot be read ({error}); choose another --output"
        ) from error
