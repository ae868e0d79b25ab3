"""Where ComfyUI lies on this machine, and which folders it reads models from."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import yaml

log = logging.getLogger("stillmotion")

VARIABLE = "COMFYUI_PATH"
CHECKOUT = Path(__file__).parents[2]

USUAL = (
    *("ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI", "ComfyUI_windows_portable/ComfyUI"),
    *("Downloads/ComfyUI_windows_portable/ComfyUI", "Desktop/ComfyUI_windows_portable/ComfyUI"),
    *("pinokio/api/comfy.git/app", "AppData/Roaming/StabilityMatrix/Packages/ComfyUI"),
)
"""Where installers, the desktop app, and people by hand put it, below one of `roots`."""


def home() -> Path:
    """Return the user's folder; "~" where the system knows none, as in some containers, where Path.home raises."""
    return Path(os.path.expanduser("~"))


def roots() -> list[Path]:
    rented = (Path(name) for name in ("/workspace", "/content", "/opt", "C:/", "D:/"))
    return [home(), Path.cwd(), CHECKOUT.parent, *rented]


def find_comfyuis() -> list[Path]:
    """Return the folders of every ComfyUI where people have them, the likeliest first: what COMFYUI_PATH names, the one
    in whose custom_nodes this checkout lies, the usual folders."""
    named = os.path.expanduser(os.environ.get(VARIABLE, ""))
    if named and not is_comfyui(Path(named)):
        log.warning("%s is %s, where no ComfyUI is: it has folders models and custom_nodes.", VARIABLE, named)
    usual = (root / name for root, name in product(roots(), USUAL))
    places = [*([Path(named)] if named else []), CHECKOUT.parent.parent, *usual]
    return list(dict.fromkeys(place.resolve() for place in places if is_comfyui(place)))


def is_comfyui(folder: Path) -> bool:
    """Tell whether a folder is ComfyUI's, or the one that its desktop app keeps models in."""
    return all(os.path.isdir(folder / name) for name in ("models", "custom_nodes"))  # never raises, unlike Path's


def model_folders(comfyui: Path, kind: str) -> list[Path]:
    """Return the folders that a ComfyUI reads models of a kind from, such as "checkpoints": its own, and those of its
    extra_model_paths.yaml."""
    return [comfyui / "models" / kind, *(folder for name, folder in extra_folders(comfyui) if name == kind)]


def extra_folders(comfyui: Path) -> list[tuple[str, Path]]:
    """Return (kind, folder) of what a ComfyUI's extra_model_paths.yaml names; of a broken one the log says so."""
    file = comfyui / "extra_model_paths.yaml"
    try:
        return list(_named_in(file)) if os.path.isfile(file) else []
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        log.warning("%s cannot be read, and its folders are not looked into: %s", file, " ".join(str(error).split()))
        return []


def _named_in(file: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a file names, read as ComfyUI does: several folders of one kind on a line each, relative ones below
    base_path or, without one, below the folder of the file."""
    sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(sections, dict):
        raise ValueError("it names no programs with folders")
    for section in sections.values():
        entries = {k: v for k, v in section.items() if isinstance(v, str)} if isinstance(section, dict) else {}
        base = os.path.expandvars(os.path.expanduser(entries.pop("base_path", "")))
        for kind, lines in entries.items():
            yield from ((kind, file.parent / base / line) for line in lines.split("\n") if line)
