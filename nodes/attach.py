"""Attachment of inflations to a ComfyUI MODEL, through the host's own wrappers: the shared model stays untouched."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial

import comfy.lora
import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..networks.asked import NOTHING
from ..networks.clip import Clip
from ..networks.inflation import Attached
from ..networks.motion_file import check_fits
from ..networks.peaks import peak_bytes
from ..networks.sites import Structure, structure_from_ldm
from ..samplers.strengths import levels_for
from .asks import Asks, asked_of, put_into_conditions, take_carried, whole_frames, with_first_frames
from .merging import refuse_merging
from .motion import LoadedMotion
from .motion_lora import add_temporal_lora, check_loaded_once
from .previews import with_previews
from .rates import pack_window
from .schedule import check_sampling
from .settings import EVOLVED, KEY, Settings, check_rank, evolved_window, frames_per_clip, merged_frames
from .unet import run_unet

log = logging.getLogger(KEY)


def structure_of(model) -> Structure:
    """Return the structure of a MODEL's U-Net. Raise ValueError where it has none of Stable Diffusion's shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.model.diffusion_model.state_dict().items()}
    if any(".time_stack." in name for name in shapes):
        raise ValueError("This model is a video model already (SVD); motion files are for image models.")
    return structure_from_ldm(shapes)


def attach(
    model,
    motion: LoadedMotion,
    *,
    temporal: float,
    recurrence: float,
    queries: float,
    temporal_lora: float = 1.0,
    frames_per_clip: int = 0,
    levels: tuple[float, ...] = (),
    keyframes: tuple[tuple[int, float], ...] = (),
):
    """Return a clone of MODEL with a motion file attached; may be repeated in any order.

    Args:
        temporal, recurrence, queries, temporal_lora: strengths of the temporal parts with the mapping network, of the
            recurrent attention, of the trained queries, and of LoRAs on the motion files that MODEL has.
        frames_per_clip: 0 where all frames of a LATENT are one clip.
        levels, keyframes: further factors, as in `Attached`, of all but queries and LoRAs; one is for all levels.

    Raises:
        MotionFileError: the file was made for another kind of model.
        ValueError: the model has another number of levels.
    """
    structure = structure_of(model)
    check_fits(motion.path, motion.info, structure)
    levels = levels_for(levels, len(structure.levels))
    model = model.clone()
    _add_queries(model, motion.queries, queries)
    add_temporal_lora(model, motion, temporal_lora)
    if motion.patcher:
        attached = Attached(
            motion.patcher.model,
            temporal=temporal,
            recurrence=recurrence,
            mapping=temporal,
            levels=levels,
            keyframes=keyframes,
        )
        settings = Settings(motion, attached, frames_per_clip)
        patchers = [*model.get_additional_models_with_key(KEY), motion.patcher.clone()]
        model.set_additional_models(KEY, patchers)
        model.set_attachments(KEY, (*(model.get_attachment(KEY) or ()), settings))
        _wrap(model)
    elif levels or keyframes:
        log.warning("%s changes weights alone; level_strengths and keyframes do not change them.", motion.path.name)
    return model


def _add_queries(model, tensors: dict[str, Tensor], strength: float) -> None:
    """Patch the query matrices of MODEL as a LoRA does: the host merges them."""
    names = {"down.weight": "lora_down.weight", "up.weight": "lora_up.weight", "diff.weight": "diff"}
    lora, keys = {}, {}
    for name, tensor in tensors.items():
        site, kind = name.split(".queries.")
        lora[f"{site}.{names[kind]}"] = tensor
        keys[site] = f"diffusion_model.{site}.to_q.weight"
    patched = model.add_patches(comfy.lora.load_lora(lora, keys), strength)
    if missing := sorted(set(keys.values()) - set(patched)):
        raise ValueError(f"This model has no {missing[0]}, which the motion file changes.")


def _wrap(model) -> None:
    wrappers = {
        WrappersMP.OUTER_SAMPLE: outer_sample,
        WrappersMP.PREPARE_SAMPLING: prepare_sampling,
        WrappersMP.APPLY_MODEL: apply_model,
        WrappersMP.DIFFUSION_MODEL: diffusion_model,
    }
    for kind, wrapper in wrappers.items():
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)
    with_previews(model)
    refuse_merging(model)


def outer_sample(executor, noise, *args, **kwargs):
    """Check the clip, once per run, and note its length where the layers look for it."""
    guider = executor.class_obj
    if guider.model_patcher.get_additional_models_with_key(EVOLVED):
        raise ValueError("AnimateDiff-Evolved and Stillmotion are attached to the same model; use one of them.")
    check_rank(guider.model_patcher, noise.shape)
    check_loaded_once(guider.model_patcher)
    settings = guider.model_patcher.get_attachment(KEY)
    check_sampling(guider.model_patcher, settings)
    frames = frames_per_clip(noise.shape[0], settings)
    check_rates(guider.model_options, settings)
    windows = getattr(guider.model_options.get("context_handler"), "context_length", None)
    warn_of_length(min(frames, windows or evolved_window(guider.model_patcher) or frames), settings)
    asks = [s.asks for s in settings]
    guider.conds = put_into_conditions(guider.conds, asks, noise.shape[-2:], guider.model_patcher.load_device)
    guider.model_options["transformer_options"][KEY] = Run(frames)
    return executor(noise, *args, **kwargs)


def check_rates(model_options: dict, settings: tuple[Settings, ...]) -> None:
    """Raise ValueError where a node is to see as many frames in the middle of the U-Net as the clip has, and cannot."""
    after = model_options.get("sampler_post_cfg_function", [])
    if merged_frames(settings) > 1 and any(function.__module__.endswith("nodes_sag") for function in after):
        raise ValueError(
            "Self-Attention Guidance takes its map where this motion file has fewer frames than the clip: use"
            " Perturbed-Attention Guidance, or a motion file that keeps the frame rate."
        )


def warn_of_length(seen: int, settings: tuple[Settings, ...]) -> None:
    """Warn where layers see a single frame, or far more frames at once than they were trained on.

    With a prior a single frame is meant: the still that the clip is made of.
    """
    for s in settings:
        if (seen == 1 and not s.motion.info.config.prior) or seen > 2 * s.motion.info.frames:
            log.warning(
                "%s was trained on clips of %d frames; here it sees %d at once: set batch_size of the latent, or"
                " frames_per_clip of the STUNet Loader, nearer to that, or sample a long clip on Temporal Windows.",
                *(s.motion.path.name, s.motion.info.frames, seen),
            )


@dataclass(frozen=True)
class Run:
    """State of one sampling run, for its forwards: frames of a clip (0: not noted), and the inflations on a device with
    what each is asked for."""

    frames: int
    attached: tuple[Attached, ...] = ()
    asks: tuple[Asks, ...] = ()


def prepare_sampling(executor, model, noise_shape, *args, **kwargs):
    """Ask the host for room for our layers too: its VRAM estimate counts its own, so that it is given more frames."""
    required = model.model.memory_required(list(noise_shape))
    rows = math.ceil(noise_shape[0] * (1 + _extra_memory(model, noise_shape) / required)) if required else 0
    return executor(model, [max(rows, noise_shape[0]), *noise_shape[1:]], *args, **kwargs)


def _extra_memory(model, noise_shape) -> int:
    """Return the bytes that the hungriest of our layers needs."""
    inflations = [patcher.model for patcher in model.get_additional_models_with_key(KEY)]
    pixels = noise_shape[0] * math.prod(noise_shape[2:])
    bytes_each = comfy.model_management.dtype_size(model.model_dtype())
    return max((peak_bytes(i.config, i.structure, pixels, bytes_each) for i in inflations), default=0)


def apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    """Find the inflations on the device of this call: the host keeps one copy of model and inflation per device."""
    patcher = executor.class_obj.current_patcher
    settings = patcher.get_attachment(KEY)
    loaded = zip(patcher.get_additional_models_with_key(KEY), settings)
    attached = tuple(replace(settings.attached, inflation=patcher.model) for patcher, settings in loaded)
    run = transformer_options.get(KEY) or Run(0)
    options = {**transformer_options, KEY: Run(run.frames, attached, tuple(s.asks for s in settings))}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def diffusion_model(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
    """Put our loop in the place of the host's forward; the wrappers of other packs still run around it."""
    run = transformer_options[KEY]
    clip = clip_of(x.shape[0], transformer_options, run.frames)
    name_frames(transformer_options, clip)
    attached, x = with_asked(run, clip, kwargs, x.shape), with_first_frames(x, run.asks, clip)
    executor.original = partial(run_unet, executor.class_obj, attached, clip)
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def with_asked(run: Run, clip: Clip, options: dict, shape) -> list[Attached]:
    """Return the inflations of a run with what each is asked for in this forward, some of which is in its options."""
    carried, whole = take_carried(options, clip.frames), whole_frames(clip, run.frames)
    clips, size = shape[0] // clip.frames, shape[-2:]
    asked = [asked_of(asks, i, carried, whole, clips, size) for i, asks in enumerate(run.asks)]
    return [a if now is NOTHING else replace(a, asked=now) for a, now in zip(run.attached, asked)]


def clip_of(rows: int, transformer_options: dict, frames: int) -> Clip:
    """Return the frames that the rows of one forward are: those of the context window, or whole clips.

    Args:
        rows: of the batch, all conditions together.
        frames: of a clip of this run, 0 where nobody noted it.
    """
    per_condition = rows // len(transformer_options.get("cond_or_uncond", [0]))
    for indices, whole in (_core_window(transformer_options), _pack_window(transformer_options)):
        if indices and len(indices) == per_condition:
            refuse_clips_on_windows(frames, whole)
            return Clip(tuple(indices))
    return Clip.of(frames if frames and per_condition % frames == 0 else per_condition)


def refuse_clips_on_windows(frames: int, whole: int) -> None:
    """Raise ValueError where clips of so many frames are to be sampled on windows of the `whole` latent."""
    if 0 < frames < whole:
        raise ValueError(
            f"Context windows work on one clip at a time; here are {whole} frames in clips of {frames}: set"
            " frames_per_clip of the STUNet Loader to 0, or give one clip alone."
        )


def name_frames(transformer_options: dict, clip: Clip) -> None:
    """Tell other packs' patches the frames of a core context window as `ad_params`, where nobody has told them."""
    if not transformer_options.get("ad_params") and _core_window(transformer_options)[0] == list(clip.indices):
        frames = transformer_options["context_window"].total_frames
        transformer_options["ad_params"] = pack_window(frames, list(clip.indices))


def _core_window(transformer_options: dict) -> tuple[list[int], int]:
    """Return the frames of the host's window, none where there is none, and how many there are in all."""
    window = transformer_options.get("context_window")
    if window is None or window.dim != 0:
        return [], 0
    anchor = getattr(window, "causal_anchor_index", None)
    return [*([] if anchor is None or anchor < 0 else [anchor]), *window.index_list], window.total_frames


def _pack_window(transformer_options: dict) -> tuple[list[int], int]:
    """Return the same of a window as packs with windows of their own name them: in `ad_params`."""
    told = transformer_options.get("ad_params") or {}
    indices = list(told.get("sub_idxs") or [])
    return indices, told.get("full_length") or len(indices)
