"""The noise schedule that a motion file was trained on, set on a ComfyUI MODEL."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import comfy.model_sampling
import torch

from ..networks.motion_file import MotionFileError, MotionInfo
from ..samplers.schedules import BETA_END, BETA_START
from .motion import LoadedMotion

log = logging.getLogger("stillmotion")

# diffusers' names for the schedules and ComfyUI's: the latter's "linear" is linear in the square root of beta
COMFY_NAMES = {"scaled_linear": "linear", "linear": "sqrt_linear"}
KINDS = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}
PREDICTIONS = {"epsilon": comfy.model_sampling.EPS, "v_prediction": comfy.model_sampling.V_PREDICTION}


def set_schedule(model, motion: LoadedMotion, *, from_file: bool):
    """Return MODEL with the file's noise schedule where it differs, or warn where the model's is to stay.

    The model's stays where another node has set one, as for LCM, or where `from_file` is false.

    Raises:
        MotionFileError: the file is for models that predict something else, or names a schedule that is not known.
    """
    path, info = motion.path, motion.info
    own_kind = model.model.model_type.name
    if KINDS.get(info.prediction) != own_kind:
        raise MotionFileError(
            f"{path} is for models that predict {info.prediction}; this one predicts {own_kind.lower()}: load the base"
            " that the file was trained on, or one like it."
        )
    if info.schedule not in COMFY_NAMES:
        raise MotionFileError(f"{path} has the schedule {info.schedule!r}; known are {', '.join(COMFY_NAMES)}.")
    wanted = _sampling(info)
    if _same(model.get_model_object("model_sampling"), wanted):
        return model
    if not from_file or "model_sampling" in model.object_patches:
        log.warning("%s was trained on another noise schedule (%s) than this model has.", path.name, info.schedule)
        return model
    log.info("%s brings its noise schedule, %s.", path.name, info.schedule)
    model = model.clone()
    model.add_object_patch("model_sampling", wanted)
    return model


def _sampling(info: MotionInfo):
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, PREDICTIONS[info.prediction]):
        pass

    settings = {"beta_schedule": COMFY_NAMES[info.schedule], "linear_start": BETA_START, "linear_end": BETA_END}
    return Sampling(SimpleNamespace(sampling_settings=settings))


def _same(own, wanted) -> bool:
    sigmas = [getattr(sampling, "sigmas", torch.empty(0)).cpu() for sampling in (own, wanted)]
    return sigmas[0].shape == sigmas[1].shape and torch.allclose(*sigmas, rtol=1e-4)
