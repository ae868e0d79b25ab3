"""Context windows: a handler, for `model_options["context_handler"]`, that runs a MODEL on windows of a clip.

It builds on the host's own handler for two things: how layers and other packs are told of a window, and how the
conditions of video models are cut. What it does itself, and why:

* the windows and their weights: its `overlap-linear` over two frames cuts hard from one window to the next;
* the mean: windows that agree leave no rounding;
* ControlNets: it shows every window the hints of the first one;
* masks of the conditioning: it cuts those of video latents along the wrong axis, and where a mask or another condition
  has fewer rows than the clip has frames, it begins with the first row again in every window;
* the time of a step: it cuts it by frames where its rows are clips, and looks it up in the schedule, which in some
  versions fails within a step of a sampler of second order;
* the frame before a window: newer versions show it to the model and drop it, so that no frame in the midst of a video
  is taken for its first. Here that is done in all versions, and for videos alone: image models have no such place;
* the ids of conditions: what a cache (EasyCache) holds for one window must not answer for another.

Nothing that other runs see is changed: a step works on copies of the handler and of the options, and ControlNets get
their own hints back after each window.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid5

import comfy.conds
import comfy.model_management
import torch
from comfy import context_windows as core
from comfy.patcher_extension import WrappersMP

from ..samplers.windows import FUSES, check_windows, fuse_in, turn, whole_window, window_count, windows_of
from . import settings
from .previews import with_previews

KEY = "stillmotion_windows"
log = logging.getLogger("stillmotion")


def sampled_on_windows(model, window: int, overlap: int, fuse: str, loop: bool = False):
    """Return a clone of MODEL that sees `window` frames at a time; windows that were set before are replaced.

    Args:
        loop: the last frame leads into the first; so it is too where MODEL was already to loop.

    Raises:
        ValueError: see `check_windows`.
    """
    check_windows(window, overlap)
    before, model = model.model_options.get("context_handler"), model.clone()
    loop = loop or isinstance(before, WindowHandler) and before.loop
    model.model_options["context_handler"] = WindowHandler(window, overlap, fuse, loop)
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
        # the first, so that what others add to the memory estimate is added to that of a window
        others = model.wrappers.get(WrappersMP.PREPARE_SAMPLING, {})
        model.wrappers[WrappersMP.PREPARE_SAMPLING] = {KEY: [prepare_sampling], **others}
    return with_previews(model)


def looped(model, frames: int):
    """Return a clone of MODEL whose clips lead from their last frame into their first, on its windows if it has any."""
    handler = model.model_options.get("context_handler")
    if isinstance(handler, WindowHandler):
        return sampled_on_windows(model, handler.context_length, handler.context_overlap, handler.fuse, loop=True)
    return sampled_on_windows(model, frames, 0, "flat", loop=True)


def frame_axis(shape) -> int:
    """Return the axis of the frames in latents of this shape. Raise ValueError where there is none."""
    if len(shape) not in (4, 5):
        raise ValueError(
            "Temporal Windows need a latent of shape (frames, channels, height, width) or (clips, channels, frames,"
            f" height, width); this one is {tuple(shape)}. Videos with sound have no such shape."
        )
    return 0 if len(shape) == 4 else 2


def frames_before(axis: int) -> int:
    """Return how many frames before a window the model is shown, whose predictions are dropped.

    A video model takes the first frame of a latent for the first of a video, which holds one frame of pixels where the
    others hold several: that place must not be a window's own.
    """
    return int(axis == 2)


def outer_sample(executor, noise, *args, **kwargs):
    """Refuse what cannot be cut into windows, once per run, before anything is loaded for it."""
    model = executor.class_obj.model_patcher
    handler = model.model_options.get("context_handler")
    if isinstance(handler, WindowHandler):
        frames = noise.shape[frame_axis(noise.shape)]
        settings.check_rank(model, noise.shape)
        check_no_other_loop(model)
        check_loop(handler.loop, noise.shape)
        check_one_clip(model, frames)
        count = window_count(frames, handler.context_length, handler.context_overlap)
        log.info("Temporal Windows: %d frames in %d windows.", frames, count)
        advise(handler.context_length, frames, settings.merged_frames(model.get_attachment(settings.KEY) or ()))
    return executor(noise, *args, **kwargs)


def check_no_other_loop(model) -> None:
    """Raise ValueError where AnimateDiff-Evolved runs MODEL: its layers go by its own windows alone."""
    if model.get_additional_models_with_key(settings.EVOLVED) or settings.evolved_window(model):
        raise ValueError(
            "AnimateDiff-Evolved runs this model and does not see Temporal Windows: use its context options for long"
            " clips, or the STUNet Loader in its place."
        )


def check_one_clip(model, frames: int) -> None:
    """Raise ValueError where the motion files of MODEL make several clips of so many frames."""
    asked = settings.asked_frames(model.get_attachment(settings.KEY) or ())
    if asked and asked < frames:
        raise ValueError(
            f"Temporal Windows work on one clip at a time; here are {frames} frames in clips of {asked}: set"
            " frames_per_clip of the STUNet Loader to 0, or give one clip alone."
        )


def check_loop(loop: bool, shape) -> None:
    """Raise ValueError where a video model is to loop: the first frame of its latents is one of pixels, not several."""
    if loop and len(shape) == 5:
        raise ValueError(
            "loop is for image models with a motion file: a video model's first latent holds a frame of its own, to"
            " which no last one leads. Turn loop off."
        )


def advise(window: int, frames: int, merged: int) -> None:
    """Warn where a model that halves the frame rate makes the last of its coarsest frames of fewer than the others."""
    if window < frames and window % merged:
        log.warning(
            "Temporal Windows: the motion file makes one frame of %d at its coarsest level; a window of %d would fit"
            " better than one of %d.",
            *(merged, whole_window(window, merged), window),
        )


def prepare_sampling(executor, model, noise_shape, *args, **kwargs):
    """Ask the host for the VRAM of one window, which is all that a run needs."""
    handler = model.model_options.get("context_handler")
    if isinstance(handler, WindowHandler):
        axis, noise_shape = frame_axis(noise_shape), list(noise_shape)
        noise_shape[axis] = min(noise_shape[axis], handler.context_length + frames_before(axis))
    return executor(model, noise_shape, *args, **kwargs)


class WindowHandler(core.IndexListContextHandler):
    """Context handler of a MODEL: length, overlap and weights of its windows; holds no state of a run."""

    def __init__(self, window: int, overlap: int, fuse: str, loop: bool = False):
        super().__init__(context_schedule=None, fuse_method=None, context_length=window, context_overlap=overlap)
        self.fuse, self.weights, self.loop = fuse, FUSES[fuse], loop

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:
        frames = x_in.size(frame_axis(x_in.shape))
        return frames > self.context_length or self.loop and frames > 1

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """Return the prediction of each condition for the whole clip, fused from those for its windows."""
        step = copy.copy(self)
        step.dim, step._model = frame_axis(x_in.shape), model
        frames = x_in.size(step.dim)
        first = turn(step_number(timestep, model_options), frames) if self.loop else 0
        controls = [c.get("control") for cond in conds for c in cond or ()] if step.dim == 0 else []
        means, totals = [torch.zeros_like(x_in) for _ in conds], [[0.0] * frames for _ in conds]
        for window in windows_of(frames, self.context_length, self.context_overlap):
            comfy.model_management.throw_exception_if_processing_interrupted()
            shown = range(max(0, window.start - frames_before(step.dim)), window.stop)
            shown = [(first + frame) % frames for frame in shown]
            inputs = step._inputs(shown, conds, x_in, timestep, model_options)
            weights = self.weights(window, frames, self.context_overlap)
            with hints_of(controls, shown):
                predictions = calc_cond_batch(model, *inputs)
            for mean, total, prediction in zip(means, totals, predictions):
                prediction = prediction.narrow(step.dim, len(shown) - len(window), len(window))
                fuse_in(mean, total, prediction, window, weights, step.dim)
        return [mean.roll(first, step.dim) for mean in means] if first else means

    def _inputs(self, window: list[int], conds, x_in, timestep, model_options):
        """Return the arguments of `calc_cond_batch` for these frames."""
        frames, told = x_in.size(self.dim), {}
        told["context_window"] = core.IndexListContextWindow(window, dim=self.dim, total_frames=frames)
        if self.dim == 0:
            # how packs that bring per-frame data look up which frames they are given
            told["ad_params"] = {"full_length": frames, "context_length": len(window), "sub_idxs": window}
            timestep = timestep[window]
        options = {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), **told}}
        conds = [cond and [self._cut(c, told["context_window"], x_in) for c in cond] for cond in conds]
        return conds, x_in.index_select(self.dim, torch.tensor(window, device=x_in.device)), timestep, options

    def _cut(self, cond: dict, window, x_in) -> dict:
        """Return a condition for the frames of a window."""
        frames, indices = x_in.size(self.dim), window.index_list
        cut = {**cond, "uuid": uuid5(cond["uuid"], str(indices[-1]))}  # the first may be another window's too
        if "mask" in cond:
            cut["mask"] = cut_mask(cond["mask"], indices, frames, axis=max(0, self.dim - 1))
        if self.dim == 0:
            cut["model_conds"] = {name: cut_rows(value, indices, name) for name, value in cond["model_conds"].items()}
        else:
            check_video(cond, frames)
            only = [{"model_conds": cond["model_conds"]}]
            cut["model_conds"] = self.get_resized_cond(only, x_in, window)[0]["model_conds"]
        return cut


def step_number(timestep, model_options: dict) -> int:
    """Return how many steps of a run are behind it, 0 at first: the noise levels above that of this forward."""
    levels = model_options.get("transformer_options", {}).get("sample_sigmas")
    return 0 if levels is None else int((levels.to(timestep) > timestep.max() * (1 + 1e-4)).sum())


def cut_rows(value, indices: list[int], name: str):
    """Cut one of `model_conds` of an image model: the host repeats its rows over the batch, which is the clip."""
    if name == "num_video_frames":
        return value._copy_with(len(indices))
    if isinstance(value, comfy.conds.CONDConstant):
        return value
    if isinstance(value.cond, list):
        return value._copy_with([repeated_rows(tensor, indices) for tensor in value.cond])
    return value._copy_with(repeated_rows(value.cond, indices))


def repeated_rows(tensor, indices: list[int]):
    return tensor if len(tensor) == 1 else tensor[[i % len(tensor) for i in indices]]


def cut_mask(mask, indices: list[int], frames: int, axis: int):
    """Cut the mask of a condition: (rows, height, width), or (clips, frames, height, width) on video latents.

    Raises:
        ValueError: it has neither one frame nor a frame for each of the clip.
    """
    given = mask.size(axis)
    if given < frames and frames % given:
        raise ValueError(
            f"A mask of the conditioning has {given} frames, the clip {frames}: give one mask, or one for each frame."
        )
    if axis == 0:
        return repeated_rows(mask, indices)
    return mask if given == 1 else mask[:, [i % given for i in indices]]


def check_video(cond: dict, frames: int) -> None:
    """Raise ValueError where a condition of a video model is about single frames and windows would not keep that."""
    if "keyframe_idxs" in cond["model_conds"]:
        raise ValueError("Temporal Windows do not work with guide frames; use ComfyUI's own context windows.")
    area = cond.get("area") or ()
    if len(area) == 6 and (area[0] < frames or area[3] > 0):
        raise ValueError(
            "Temporal Windows do not work with a conditioning area that covers some of the frames only; use a mask with"
            " a frame for each frame of the latent."
        )


@contextmanager
def hints_of(controls: Iterable, indices: list[int]) -> Iterator[None]:
    """Let ControlNets show the hints of a window, and give them back what they had.

    They stay the same objects: other packs bind methods to them, and close over them, so that a copy would show the
    hints of the whole clip. What they prepare goes with the window: kept, the hints of all windows would fill the VRAM
    that windows are there to save.
    """
    before = [(control, dict(vars(control))) for control in chained(controls) if has_hints_by_frame(control)]
    try:
        for control, had in before:
            rows = [i % len(had["cond_hint_original"]) for i in indices]
            control.cond_hint, control.cond_hint_original = None, had["cond_hint_original"][rows]
            control.extra_concat_orig = [repeated_rows(extra, rows) for extra in control.extra_concat_orig]
        yield
    finally:
        for control, had in before:
            vars(control).clear()
            vars(control).update(had)


def chained(controls: Iterable) -> list:
    """Return ControlNets with those that they are chained to and their copies on further devices, each once."""
    found, waiting = {}, [control for control in controls if control is not None]
    while waiting:
        control = waiting.pop()
        if id(control) not in found:
            found[id(control)] = control
            others = [control.previous_controlnet, *getattr(control, "multigpu_clones", {}).values()]
            waiting += [other for other in others if other is not None]
    return list(found.values())


def has_hints_by_frame(control) -> bool:
    """Tell whether hints are to be cut: Advanced-ControlNet's nets have sub_idxs and cut them by `ad_params`."""
    hint = control.cond_hint_original
    return hint is not None and len(hint) > 1 and not hasattr(control, "sub_idxs")
