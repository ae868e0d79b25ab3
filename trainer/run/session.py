"""The beginning of every run: what is asked for, on which processes, from which save on, with which image model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from accelerate import Accelerator

from ..base.auto import AUTO, resolve_base
from ..base.comfyui import find_comfyuis
from ..base.load import Base, check_trainable, load_base
from ..options import TrainOptions
from ..show.progress import working
from .install import place_to_install
from .lock import check_unlocked
from .processes import make_accelerator, resolved_precision
from .saves import base_of_run, last_save

log = logging.getLogger("stillmotion")


class Stage(Enum):
    """The stages of every command that trains, in their order, as people are told of them."""

    CLIPS = "looking at the clips"
    BASE = "loading the image model"
    ENCODING = "encoding the clips"
    ESTIMATE = "memory and time of a step"
    TRAINING = "training"


@dataclass(frozen=True)
class Session:
    """A run before anything trains. `save`: the training checkpoint that it goes on from, None from the first step."""

    options: TrainOptions
    accelerator: Accelerator
    save: Path | None

    @property
    def cells(self) -> tuple[int, int]:
        """(width, height) of the latents."""
        return self.options.size[0] // 8, self.options.size[1] // 8

    def enter(self, stage: Stage) -> None:
        """Say which stage begins, and its place among all."""
        log.info("%d of %d: %s", list(Stage).index(stage) + 1, len(Stage), stage.value)


def begin(options: TrainOptions) -> Session:
    """Check what can be checked at once, find what is to be found, and start the processes.

    The options of the session name the base, the ComfyUI and the precision that `auto` stands for.

    Raises:
        FileNotFoundError: the base is not there, or none is found.
        ValueError: the output folder holds a run that nobody asked to resume, another run is in it, or the processes
            cannot work together.
    """
    check_unlocked(options.output)
    save = last_save(options)
    base = base_of_run(options) if save and options.base == AUTO else options.base
    with working("looking for ComfyUI and image models"):
        comfyuis = find_comfyuis() if AUTO in (base, options.install) or not base.exists() else []
        base = resolve_base(base, comfyuis)
        install = place_to_install(options.install, comfyuis, base)
    found = {"base": base, "install": install, "precision": resolved_precision(options)}
    options = options.model_copy(update=found)
    return Session(options, make_accelerator(options), save)


def check_alone(session: Session) -> None:
    """Raise ValueError where another run saved something in the folder since this one began."""
    if last_save(session.options) != session.save:
        raise ValueError(
            f"--output {session.options.output} was used by another run meanwhile: start again with --resume, or choose"
            " another --output"
        )


def load_image_model(session: Session) -> Base:
    """Load the session's base, whose prediction and schedule must be ones that the losses are made for.

    Raises:
        FileNotFoundError, ValueError: it cannot be used.
    """
    session.enter(Stage.BASE)
    path = session.options.base
    with working(f"loading {path.name}"):
        base = load_base(path)
    check_trainable(path, base)
    return base
