"""The beginning of every run: what is asked for, on which processes, from which save on, with which image model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from accelerate import Accelerator

from ...samplers.schedules import Prediction
from ..base.load import Base, check_exists, load_base
from ..options import TrainOptions
from .lock import check_unlocked
from .milestones import last_save
from .processes import make_accelerator, resolved_precision

log = logging.getLogger("stillmotion")


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


def begin(options: TrainOptions) -> Session:
    """Check what can be checked at once, and start the processes.

    Raises:
        FileNotFoundError: the base is not there.
        ValueError: the output folder holds a run that nobody asked to resume, another run is in it, or the processes
            cannot work together.
    """
    check_unlocked(options.output)
    save = last_save(options)
    check_exists(options.base)
    options = options.model_copy(update={"precision": resolved_precision(options)})
    return Session(options, make_accelerator(options), save)


def check_alone(session: Session) -> None:
    """Raise ValueError where another run saved something in the folder since this one began."""
    if last_save(session.options) != session.save:
        raise ValueError(
            f"--output {session.options.output} was used by another run meanwhile: start again with --resume, or choose"
            " another --output"
        )


def load_image_model(path: Path) -> Base:
    """Load the base, whose prediction and schedule must be ones that the losses are made for.

    Raises:
        FileNotFoundError, ValueError: it cannot be used.
    """
    log.info("Loading %s …", path)
    base = load_base(path)
    if base.schedule != "scaled_linear" or base.prediction not in get_args(Prediction):
        raise ValueError(
            f"{path} predicts {base.prediction} on the schedule {base.schedule}; training knows epsilon and"
            " v_prediction on scaled_linear, as Stable Diffusion has them"
        )
    if base.zero_snr and base.prediction == "epsilon":
        raise ValueError(
            f"{path} predicts epsilon on a schedule with zero terminal SNR, where nothing can be learnt from it; such"
            " models predict the velocity: mend prediction_type in its scheduler_config.json"
        )
    return base
