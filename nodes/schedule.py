"""The noise schedule that a motion file was trained on, set on a ComfyUI MODEL."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace

import comfy.model_sampling
import torch

from ..networks.motion_file import MotionFileError, MotionInfo
from ..samplers.schedules import BETA_END, BETA_START
from .motion import LoadedMotion
from .settings import Settings, predicts

log = logging.getLogger("stillmotion")

# diffusers' names for the schedules and ComfyUI's: the latter's "linear" is linear in the square root of beta
COMFY_NAMES = {"scaled_linear": "linear", "linear": "sqrt_linear"}
KINDS = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}
PREDICTIONS = {"epsilon": comfy.model_sampling.EPS, "v_prediction": comfy.model_sampling.V_PREDICTION}

GUESSED = "sd21"
"""The family of which the host guesses by a statistic whether a model predicts v, and takes it to predict epsilon where
that is low."""


def set_schedule(model, motion: LoadedMotion, *, from_file: bool):
    """Return MODEL with the file's noise schedule where it differs, or warn where the model's is to stay.

    The model's stays where another node has set one, as for LCM, or where `from_file` is false. Of a family whose
    prediction the host guesses, the file's prediction is set along with it.

    Raises:
        MotionFileError: the file is for models that predict something else, or names a schedule that is not known.
    """
    path, info = motion.path, motion.info
    if info.schedule not in COMFY_NAMES:
        raise MotionFileError(f"{path} has the schedule {info.schedule!r}; known are {', '.join(COMFY_NAMES)}.")
    known = _check_prediction(model, motion, from_file)
    wanted = _sampling(info)
    if known and _same(model.get_model_object("model_sampling"), wanted):
        return model
    if not from_file or _is_set(model):
        log.warning("%s was trained on another noise schedule (%s) than this model has.", path.name, described(info))
        return model
    log.info("%s brings its noise schedule, %s.", path.name, described(info))
    model = model.clone()
    model.add_object_patch("model_sampling", wanted)
    return model


def described(info: MotionInfo) -> str:
    ends = " with zero terminal SNR" if info.zero_snr else ""
    return f"{info.schedule}{ends}" + ("" if info.prediction == "epsilon" else f", {info.prediction}")


def _check_prediction(model, motion: LoadedMotion, from_file: bool) -> bool:
    """Tell whether the model is known to predict what the file's do; if not, it is to be set from the file.

    Raises:
        MotionFileError: the model predicts something else.
    """
    info, own = motion.info, predicts(model)
    if KINDS.get(info.prediction) == own:
        return True
    guessed = own == "EPS" and info.prediction == "v_prediction" and info.family == GUESSED and not _is_set(model)
    if guessed and from_file:
        return False
    remedy = (
        "set schedule of the STUNet Loader to from file, which sets that too"
        if guessed
        else "load the base that the file was trained on, or one like it"
    )
    raise MotionFileError(
        f"{motion.path} is for models that predict {info.prediction}; this one predicts {own.lower()}: {remedy}."
    )


def check_sampling(model, settings: Sequence[Settings]) -> None:
    """Raise ValueError where a node behind the loader has set that the model predicts something else than its files."""
    for s in settings:
        if KINDS.get(s.motion.info.prediction, predicts(model)) != predicts(model):
            raise ValueError(
                f"{s.motion.path.name} is for models that predict {s.motion.info.prediction}, and this one is set to"
                f" predict {predicts(model).lower()}: take ModelSamplingDiscrete out, or set it to what the file needs."
            )


def _is_set(model) -> bool:
    """Tell whether a node before has set how the model is sampled."""
    return "model_sampling" in model.object_patches


def _sampling(info: MotionInfo):
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, PREDICTIONS[info.prediction]):
        pass

    settings = {"beta_schedule": COMFY_NAMES[info.schedule], "linear_start": BETA_START, "linear_end": BETA_END}
    return Sampling(SimpleNamespace(sampling_settings=settings), zsnr=info.zero_snr)


def _same(own, wanted) -> bool:
    sigmas = [getattr(sampling, "sigmas", torch.empty(0)).cpu() for sampling in (own, wanted)]
    return sigmas[0].shape == sigmas[1].shape and torch.allclose(*sigmas, rtol=1e-4)
