"""The base that `--base auto` takes: what image models are on this machine, and which of them is best to train on."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...networks.recognise import kind_of_names
from ...networks.shown import shown
from ...networks.sites import FAMILY_OF_CONTEXT, Structure, structure_from_diffusers, structure_from_ldm
from ..config import suggestion
from .comfyui import home, model_folders
from .folder import part_tensors
from .ldm_checkpoint import checkpoint_parts, shapes_of
from .load import check_base
from .tensors import STRANGE, is_pickled_file, read_outlines

log = logging.getLogger("stillmotion")

AUTO = Path("auto")
DEMO_BASE = Path("demo/base.safetensors")

SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl"}
"""Of files that ComfyUI lists among checkpoints."""

SMALL = 200_000_000
"""Parameters of a U-Net below which it is a toy: that of Stable Diffusion 1.5 has 860 million."""

ITSELF = re.compile(
    r"(stable[-_ ]?diffusion|sd)?[-_ ]?v?1[-_. ]?5([-_ ](pruned|ema|emaonly|only|no|vae|fp16|fp32|bf16))*",
    re.IGNORECASE,
)
"""Names under which Stable Diffusion 1.5 itself goes about, not a model made of it."""

GET_ONE = (
    "put one into ComfyUI's models/checkpoints, such as v1-5-pruned-emaonly.safetensors (4 GB, from"
    " huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5), or name one with --base"
)


class PassedOver(ValueError):
    """Why a file is no base, in two or three words that can be counted."""


class Candidate(NamedTuple):
    """A place to look at: `name` is what a loader of ComfyUI, or else people, call it; `listed`: ComfyUI has it."""

    path: Path
    name: str
    listed: bool


@dataclass(frozen=True)
class Found:
    """A candidate that may be a base, by its header. `size`: parameters of its U-Net."""

    candidate: Candidate
    size: int
    pickled: bool
    newest: float

    @property
    def rank(self) -> tuple:
        """Sort the best first; `WHY` says in words what each of the numbers is."""
        name = Path(self.candidate.name)
        itself = ITSELF.fullmatch(name.stem if name.suffix.lower() in SUFFIXES else name.name)
        return -self.size, not self.candidate.listed, self.pickled, not itself, -self.newest


WHY = (
    *("for the largest U-Net", "since ComfyUI lists it", "since it is no pickle"),
    *("since it is Stable Diffusion 1.5 itself by its name", "since it is the newest"),
)


def resolve_base(path: Path, comfyuis: Sequence[Path]) -> Path:
    """Return the base that is meant: the path itself, what a loader of ComfyUI lists under this name, or what `auto`
    finds; the log says which and why.

    Args:
        comfyuis: folders of ComfyUI that are looked into.

    Raises:
        FileNotFoundError: there is nothing at `path`, or `auto` finds nothing.
    """
    places = candidates(comfyuis, hub_folder())
    if path != AUTO:
        return named(path, places)
    found, passed = usable(places)
    if not found:
        raise FileNotFoundError(
            "No image model of the SD1.5 family was found in ComfyUI's folders or the Hugging Face cache"
            f"{told(passed)}: {GET_ONE}. `python -m trainer demo` makes a small one to try things with, found as"
            f" {DEMO_BASE}"
        )
    best = found[0]
    log.info(
        "Base: %s, %s%s. --base and a name or path takes another%s.",
        *(best.candidate.path, reason(found), told(passed), f": {others(found)}" if found[1:] else ""),
    )
    if best.size < SMALL:
        log.warning(
            "NO REAL IMAGE MODEL WAS FOUND: this trains on a small base, which draws coloured shapes of 64x64 pixels"
            " and nothing else. What comes out shows that training works, and is of no other use: %s.",
            GET_ONE,
        )
    return best.candidate.path


def named(path: Path, places: Iterable[Candidate]) -> Path:
    """Return the path where something is there, else the first place of this name, with or without its folder."""
    if path.exists():
        return path
    name, known = path.as_posix(), set()
    for place in places:
        names = place.name, Path(place.name).name
        if name in names:
            log.info("Base: %s.", place.path)
            return place.path
        known.update(names)
    what = suggestion(name, sorted(known), "give a diffusers folder or a .safetensors file")
    raise FileNotFoundError(f"there is no base model at {path}, and ComfyUI lists none of this name{what}")


def usable(places: Iterable[Candidate]) -> tuple[list[Found], Counter[str]]:
    """Return the candidates that may be bases, the best first, of which that one is held to the whole gate; and how
    many are passed over for which reason."""
    found, passed = [], Counter()
    for place in places:
        try:
            found.append(look(place))
        except PassedOver as why:
            passed[str(why)] += 1
        except (ValueError, *STRANGE):  # damaged in whichever way, or may not be read
            passed["unreadable"] += 1
    found.sort(key=lambda each: each.rank)
    while found:
        try:
            check_base(found[0].candidate.path)
            break
        except (ValueError, *STRANGE):
            passed["incomplete"] += 1
            del found[0]
    return found, passed


def candidates(comfyuis: Sequence[Path], hub: Path) -> Iterator[Candidate]:
    """Yield every place where an image model may be, each once: what ComfyUI lists, diffusers folders in the Hugging
    Face cache, and the demo's base."""
    seen = set()
    listed = (place for comfyui in comfyuis for place in listed_by(comfyui))
    demo = [Candidate(DEMO_BASE, DEMO_BASE.name, False)] if DEMO_BASE.is_file() else []
    for place in (*listed, *cached_in(hub), *demo):
        if (real := os.path.realpath(place.path)) not in seen:
            seen.add(real)
            yield place


def listed_by(comfyui: Path) -> Iterator[Candidate]:
    """Yield what Load Checkpoint and the loader of diffusers folders list, under their names for it."""
    for folder in model_folders(comfyui, "checkpoints"):
        files = (path for below, _, names in walk(folder) for path in sorted(below / name for name in names))
        for path in files:
            if path.suffix.lower() in SUFFIXES:
                yield Candidate(path, path.relative_to(folder).as_posix(), True)
    for folder in model_folders(comfyui, "diffusers"):
        for below, _, names in walk(folder):
            if "model_index.json" in names:
                yield Candidate(below, below.relative_to(folder).as_posix(), True)


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk through a folder and the links in it, as ComfyUI does, and through none twice; what may not be read is
    passed by."""
    seen = set()
    for below, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(below)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield Path(below), folders, names


def hub_folder() -> Path:
    """Return the cache of models of Hugging Face's libraries."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache")
    hugging_face = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or hugging_face / "hub"))


def cached_in(hub: Path) -> Iterator[Candidate]:
    """Yield the diffusers folders of a cache, named as their repositories are."""
    for index in sorted(hub.glob("models--*/snapshots/*/model_index.json")):
        repository = index.parents[2].name.removeprefix("models--").replace("--", "/")
        yield Candidate(index.parent, repository, False)


def look(place: Candidate) -> Found:
    """Return what the headers of a model's files say of it.

    Raises:
        PassedOver: it is no text-to-image model of the SD1.5 family.
        ValueError, OSError: its files cannot be read.
    """
    folder = place.path.is_dir()
    structure, unet = outline_of_folder(place.path) if folder else outline_of_file(place.path)
    if structure.context not in FAMILY_OF_CONTEXT or FAMILY_OF_CONTEXT[structure.context] != "sd15":
        raise PassedOver(FAMILY_OF_CONTEXT.get(structure.context, "unknown family").upper())
    if unet["conv_in.weight" if folder else "input_blocks.0.0.weight"].shape[1] != 4:
        raise PassedOver("for inpainting")
    pickled = not folder and is_pickled_file(place.path)
    size = sum(tensor.numel() for tensor in unet.values())
    return Found(place, size, pickled, place.path.stat().st_mtime)


def outline_of_file(path: Path) -> tuple[Structure, Mapping[str, Tensor]]:
    tensors = read_outlines(path)
    unet, text, vae = checkpoint_parts(tensors)
    if not unet:
        raise PassedOver((kind_of_names(tensors) or "unknown").partition(":")[0])
    if not (text and vae):
        raise PassedOver("without text encoder or VAE")
    return structure_of(structure_from_ldm, unet), unet


def outline_of_folder(path: Path) -> tuple[Structure, Mapping[str, Tensor]]:
    if not (path / "unet").is_dir():
        raise PassedOver("of another family")
    unet = part_tensors(path / "unet", read_outlines)
    return structure_of(structure_from_diffusers, unet), unet


def structure_of(read, tensors: Mapping[str, Tensor]) -> Structure:
    try:
        return read(shapes_of(tensors))
    except ValueError as error:
        raise PassedOver("of another family") from error


def reason(found: Sequence[Found]) -> str:
    """Say why the first was taken: by the first number in which its rank is ahead of the second's."""
    if len(found) == 1:
        return "the only one of the SD1.5 family"
    ahead = next((why for why, a, b in zip(WHY, found[0].rank, found[1].rank) if a != b), "as good as the next")
    return f"taken of {len(found)} of the SD1.5 family {ahead}"


def others(found: Sequence[Found]) -> str:
    names = [shown(each.candidate.name, 60) for each in found[1:4]]
    more = [f"{len(found) - 4} more"] if len(found) > 4 else []
    return ", ".join([*names, *more])


def told(passed: Counter[str]) -> str:
    counts = ", ".join(f"{count} {why}" for why, count in passed.most_common())
    return f" (passed over: {counts})" if counts else ""


def listed_name(base: Path, comfyuis: Sequence[Path]) -> str:
    """Return the name by which a loader of ComfyUI lists a base; where none does, what it is called elsewhere."""
    listed = (name_in(comfyui, base) for comfyui in comfyuis)
    path = Path(os.path.abspath(base))  # so that "." has a name
    of_hub = path.parents[1].name.removeprefix("models--") if path.parent.name == "snapshots" else ""
    return next(filter(None, listed), of_hub or path.name)


def name_in(comfyui: Path, base: Path) -> str | None:
    """Return the name by which a ComfyUI lists a base, by whatever dots and links it was reached; None: it does not."""
    folders = model_folders(comfyui, "diffusers" if base.is_dir() else "checkpoints")
    pairs = product(spellings(base), (spelling for folder in folders for spelling in spellings(folder)))
    return next((str(path.relative_to(folder)) for path, folder in pairs if path.is_relative_to(folder)), None)


def spellings(path: Path) -> tuple[Path, Path]:
    return Path(os.path.abspath(path)), Path(os.path.realpath(path))
