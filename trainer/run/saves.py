"""Which saves a run's folder holds, and how one goes on from them. Loads no torch: Ctrl-C may come before it."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

from ..options import TrainOptions

log = logging.getLogger("stillmotion")


def run_name(options: TrainOptions) -> str:
    """Name of the motion file: that of the run's folder."""
    return options.output.resolve().name or "motion"


def finished_file(options: TrainOptions) -> Path:
    """Return where the motion file of a run that is done lies."""
    return options.output / f"{run_name(options)}.safetensors"


def saves_of(options: TrainOptions) -> Path:
    return options.output / "saves"


def saved_states(folder: Path) -> list[Path]:
    """Return the saves in a folder, oldest first."""
    return numbered(folder, "state-*.pt")


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a name with a step in it, in the order of steps; what people put beside them, such as a copy
    of one, is none of them.

    Args:
        pattern: the name, in which the last "*" stands for the step, and all else for itself.
    """
    names = re.compile(r"(\d{6,})".join(map(re.escape, pattern.rsplit("*", 1))))
    steps = {path: int(found[1]) for path in folder.glob("*") if (found := names.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__)


def last_save(options: TrainOptions) -> Path | None:
    """Return the newest save in the run's folder, None where there is nothing to resume.

    Raises:
        ValueError: there is a run in the folder, and nobody asked to resume it, or a motion file of this name without
            one; or it is no folder.
    """
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output is {options.output}, which is a file; give a folder for the run.")
    found = saved_states(saves_of(options))
    if found and not options.resume:
        raise ValueError(f"{options.output} holds a run already, {told_of(options, found[-1])}")
    if not found and finished_file(options).is_file():
        raise ValueError(
            f"{finished_file(options)} is there already, and no save to go on from: train with another --output, or"
            " move the file away."
        )
    if options.resume and not found:
        log.warning("%s holds no save yet: the run starts with its first step.", options.output)
    return found[-1] if found else None


def told_of(options: TrainOptions, save: Path) -> str:
    """Say how far the run in a folder is, and what to add to the command that met it."""
    if (finished := finished_file(options)).is_file():
        return f"and it is finished ({finished}): train another one with --output and the name of a new folder."
    step = int(save.stem.removeprefix("state-"))
    return f"saved after step {step}: add --resume to go on with it, or --output and a new folder to start another."


def base_of_run(options: TrainOptions) -> Path:
    """Return the base that the run in the output folder trains on.

    Raises:
        ValueError: its options.toml does not say.
    """
    file = options.output / "options.toml"
    try:
        return Path(tomllib.loads(file.read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} does not say on which base this run trains: give --base") from error
