"""A motion file and its workflow put where ComfyUI lists them, beside what is there and never over it."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from ...networks.atomic import replacing
from ..base.auto import AUTO, name_in
from ..base.comfyui import is_comfyui

log = logging.getLogger("stillmotion")

NO = Path("no")
MOTIONS, WORKFLOWS = "models/stillmotion", "user/default/workflows"


def place_to_install(asked: Path, comfyuis: Sequence[Path], base: Path) -> Path:
    """Return the ComfyUI that a result is put into, or NO.

    Args:
        asked: a ComfyUI's folder, NO, or AUTO: of `comfyuis` the first that lists the base, or else the first.

    Raises:
        ValueError: what was asked for is no ComfyUI.
    """
    if asked == AUTO:
        return next((comfyui for comfyui in comfyuis if name_in(comfyui, base)), comfyuis[0] if comfyuis else NO)
    if asked != NO and not is_comfyui(asked):
        raise ValueError(f"--install is {asked}, where no ComfyUI is: its folder has models and custom_nodes in it")
    return asked


def install(comfyui: Path, motion: Path, write_workflow: Callable[[str], Path]) -> None:
    """Copy a motion file and its workflow into a ComfyUI and say where they are. A disk that refuses ends no run.

    Args:
        comfyui: NO: the workflow is written, and nothing is copied.
        write_workflow: writes the workflow for a motion file of this name, and returns where it is.
    """
    if comfyui != NO:
        try:
            return _install(comfyui, motion, write_workflow)
        except OSError as error:
            log.warning("They could not be put into ComfyUI at %s: %s", comfyui, error)
    workflow = write_workflow(motion.name)
    log.info("Put it into ComfyUI's models/stillmotion and open %s there.", workflow)


def _install(comfyui: Path, motion: Path, write_workflow: Callable[[str], Path]) -> None:
    lacks_nodes = not (comfyui / MOTIONS).is_dir()  # which make the folder when ComfyUI starts
    placed = copied(motion, comfyui / MOTIONS, motion.stem)
    workflow = copied(write_workflow(placed.name), comfyui / WORKFLOWS, placed.stem)
    hint = "; its custom_nodes seem to lack Stillmotion: clone or link it there first" if lacks_nodes else ""
    log.info("In ComfyUI: open the workflow %s, which uses %s%s.", workflow, placed, hint)


def copied(source: Path, folder: Path, stem: str) -> Path:
    """Copy a file into a folder under the first name of stem, stem-2, stem-3, … that is free, or has its content."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        place = folder / f"{stem}{f'-{number}' if number > 1 else ''}{source.suffix}"
        if not os.path.lexists(place):
            with replacing(place) as beside:
                shutil.copyfile(source, beside)
            return place
        if place.is_file() and filecmp.cmp(source, place, shallow=False):
            return place
    raise AssertionError("numbers do not end")
