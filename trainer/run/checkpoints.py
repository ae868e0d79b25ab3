"""Saves of a run: all that is needed to go on as if nothing had happened, written so that no crash takes them away."""

from __future__ import annotations

import errno
import glob
import json
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ...networks.atomic import remove_unfinished, replacing, write_durably
from ...networks.shown import shown
from ..base.division import gather, load, load_optimizer
from ..config import flag_of
from .loop import Training
from .saves import numbered

FORMAT = 4
STATES = "state-{:06d}.pt"

FLAGS = {"micro_batches": "--accumulation times the number of processes"}
"""Flags of facts that are no options of ours."""


def state_of(training: Training, facts: dict) -> dict:
    """Return a run as tensors, numbers and text; `facts` are what a resumed run must have in common with it.

    All processes must call it, and the first one write it.
    """
    scaler = training.accelerator.scaler
    state = {
        "format": FORMAT,
        "step": training.step,
        "facts": json.dumps(facts),
        "weights": training.weights.state_dict(),
        "optimizer": training.raw_optimizer.state_dict(),
        "ema": None if training.ema is None else training.ema.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "objective": training.objective.state(),
        "positions": [list(position) for position in training.positions],
    }
    return gather(state)


def facts_of(state: dict) -> dict:
    return json.loads(state["facts"])


def restore(training: Training, state: dict) -> None:
    """Put a saved state into a run that was started with the same facts."""
    training.step = state["step"]
    load(training.weights, state["weights"])
    load_optimizer(training.raw_optimizer, state["optimizer"])
    if training.ema is not None:
        load(training.ema, state["ema"])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    training.objective.restore(state["objective"])
    training.positions = tuple(map(tuple, state["positions"]))


def save_state(folder: Path, state: dict) -> Path:
    """Write the state of a step into the run's folder and read it back before it gets its name.

    Raises:
        OSError: the disk is full or the folder cannot be written; older saves are untouched.
    """
    path = folder / STATES.format(state["step"])
    with replacing(path) as beside:
        write_durably(beside, lambda file: torch.save(state, file))
        read_back = read_state(beside)
        if not same(read_back, state):
            raise OSError(errno.EIO, f"The save of step {state['step']} reads back differently; the disk is not sound.")
    return path


def same(a, b) -> bool:
    """Compare nested dicts, lists, numbers and tensors, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(bits(a), bits(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def read_state(path: Path) -> dict:
    """Return a saved state, tensors on the CPU.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and --resume goes on from the save before."
        ) from error
    if damaged:
        raise ValueError(f"{path} is damaged; delete it and --resume goes on from the save before.")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no save of this version (format {FORMAT}); resume with the version that wrote it.")
    return state


def keep_latest(folder: Path, patterns: tuple[str, ...], keep: int) -> None:
    """Delete all but the newest `keep` files of each pattern, see `numbered`.

    What a killed process had not finished goes as well, so no other process may be writing into the folder.
    """
    for pattern in patterns:
        remove_unfinished(folder, "*".join(map(glob.escape, pattern.rsplit("*", 1))))
        for path in numbered(folder, pattern)[:-keep]:
            path.unlink(missing_ok=True)


def check_same_facts(path: Path, saved: dict, now: dict, defaults: dict) -> None:
    """Raise ValueError, with the option's flag, where a run would be resumed with another value that matters.

    What a save does not know yet counts as its default, so that a new option leaves older saves as good as they were
    while nobody sets it. What only the save knows matters no more where it still is an option; an option that is gone
    may have changed the run, unless it was off.

    Args:
        defaults: of all options, whether they matter or not.
    """
    for name, value in now.items():
        before = saved.get(name, defaults.get(name))
        if value != before:
            flag = FLAGS.get(name, flag_of(name))
            raise ValueError(
                f"{flag} is {value_text(value)}, but {path} was made with {value_text(before)}: resume with the same,"
                " or start anew in another --output."
            )
    for name in sorted(saved.keys() - now.keys() - defaults.keys()):
        if saved[name] is not None and saved[name] is not False:
            raise ValueError(
                f"{path} was made with {flag_of(name)} {saved[name]}, which there is no more: resume with the version"
                " that wrote it, or start anew in another --output."
            )


def value_text(value) -> str:
    return "none" if value is None else shown(value, 200)
