"""Nodes that attach motion files to a model."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..networks.stamp import stamp_of
from ..samplers.strengths import parse_keyframes, parse_levels
from .compat import io, schema, where_known
from .node import Node

FOLDER = "stillmotion"
ANIMATEDIFF, ANIMATEDIFF_LORA = "animatediff_models", "animatediff_motion_lora"
"""AnimateDiff-Evolved's folders: listed where that pack or extra_model_paths.yaml names them."""


def _register_folder() -> None:
    folder = Path(folder_paths.models_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, str(folder))
    # without extensions every file would be listed; pickled ones are, to be refused with the command that converts them
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".ckpt"})


_register_folder()


def _file_input(name: str, tooltip: str, *others: str):
    folders = [FOLDER, *(folder for folder in others if folder in folder_paths.folder_names_and_paths)]
    names = [name for folder in folders for name in folder_paths.get_filename_list(folder)]
    return io.Combo.Input(name, options=list(dict.fromkeys(names)), tooltip=tooltip)


def _path(file: str, other: str = ANIMATEDIFF) -> Path:
    own = folder_paths.get_full_path(FOLDER, file)
    return Path(own or folder_paths.get_full_path(other, file) or folder_paths.get_full_path_or_raise(FOLDER, file))


def _changed(path: Path) -> str:
    """Return which content a file has: one that was made again under its old name is another input."""
    return str(stamp_of(path))


def _strength(name: str, tooltip: str):
    return io.Float.Input(name, default=1.0, min=0.0, max=2.0, step=0.05, tooltip=tooltip)


def _lora_strength(name: str, tooltip: str, **more):
    return io.Float.Input(name, default=1.0, min=-10.0, max=10.0, step=0.05, tooltip=tooltip, **more)


def _text(name: str, tooltip: str):
    """Return a text input that is optional, so that graphs from before there was one go on running."""
    return where_known(io.String.Input, name, default="", optional=True, advanced=True, tooltip=tooltip)


def _with_motion(model, motion_file: str, *, from_file: bool, **how):
    """Return MODEL with a motion file attached, and its noise schedule set; `how` is for `attach`."""
    from .attach import attach  # here, for these would slow down ComfyUI's start
    from .motion import load_motion
    from .schedule import set_schedule

    motion = load_motion(_path(motion_file))
    return set_schedule(attach(model, motion, **how), motion, from_file=from_file)


class STUNetLoader(Node):
    """Node that attaches a motion file of any kind, with all its parts."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionSTUNetLoader",
            display_name="STUNet Loader",
            category="stillmotion/load",
            description="Turns an image model into a video model with a motion file: AnimateDiff's modules, diffusers'"
            " and your own.",
            search="animatediff, motion module, motion model, motion adapter, animatelcm, apply animatediff model, use"
            " evolved sampling, effect multival, lumiere, text to video, txt2vid, t2v",
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint of the family that the motion file was made for."),
                _file_input(
                    "motion_file",
                    "A file in models/stillmotion: one that `python -m trainer` made, or a motion module of AnimateDiff"
                    " or diffusers for SD1.5; not one for SDXL, PIA or SparseCtrl.",
                    ANIMATEDIFF,
                ),
                _strength("strength", "Factor of all that the file adds. 0: the image model, 1: as trained."),
                io.Int.Input(
                    "frames_per_clip",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Frames of one clip, where a batch of latents holds several. 0: the batch is one clip.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=["from file", "from model"],
                    tooltip="Noise schedule to sample on: the one the file was trained on, or the model's own.",
                ),
                _text(
                    "level_strengths",
                    "Further factors of strength at each level of the U-Net, finest first: 1, 1, 0.5, 0 for example."
                    " Empty: 1 everywhere; one number: all levels.",
                ),
                _text(
                    "keyframes",
                    "Further factors of strength at some frames, linear between: 0: 1.0, 8: 0.5, 15: 1.2 for example."
                    " Empty: 1 everywhere.",
                ),
            ],
            outputs=[io.Model.Output("video_model", display_name="model")],
        )

    @classmethod
    def execute(
        cls, model, motion_file, strength, frames_per_clip, schedule, level_strengths="", keyframes=""
    ) -> io.NodeOutput:
        levels, keyframes = parse_levels(level_strengths), parse_keyframes(keyframes)
        model = _with_motion(
            model,
            motion_file,
            from_file=schedule == "from file",
            temporal=strength,
            recurrence=strength,
            queries=strength,
            temporal_lora=strength,
            frames_per_clip=frames_per_clip,
            levels=levels,
            keyframes=keyframes,
        )
        return io.NodeOutput(model)

    @classmethod
    def fingerprint_inputs(cls, motion_file, **others):
        return _changed(_path(motion_file))


class RecurrentMotionLoRA(Node):
    """Node that attaches a few-shot motion file, with a strength for its queries, one for its LoRA on the motion model
    that it was learnt on top of, and one for the rest."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionRecurrentMotionLoRA",
            display_name="Recurrent Motion LoRA",
            category="stillmotion/load",
            description="Adds a motion that was learnt from a few clips, as a LoRA adds a style; several can be"
            " chained.",
            search="few-shot motion, motion lora, animate, learn a motion, motiondirector, tune-a-video",
            inputs=[
                io.Model.Input("model", tooltip="An image model, or one with other motion files on it."),
                _file_input("motion_file", "A file in models/stillmotion, made by `python -m trainer fewshot`."),
                _strength("lora_strength", "Factor of the trained query projections (to_q)."),
                _strength("memory_strength", "Factor of the recurrent attention and the attention over frames."),
                _lora_strength(
                    "temporal_lora_strength",
                    "Factor of the LoRA on the motion model that the file was learnt on top of, which a STUNet Loader"
                    " before this node loads. 1: as trained, 0: nothing, below 0: the other way.",
                    optional=True,
                ),
            ],
            outputs=[io.Model.Output("video_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model, motion_file, lora_strength, memory_strength, temporal_lora_strength=1.0) -> io.NodeOutput:
        model = _with_motion(
            model,
            motion_file,
            from_file=False,
            temporal=memory_strength,
            recurrence=memory_strength,
            queries=lora_strength,
            temporal_lora=temporal_lora_strength,
        )
        return io.NodeOutput(model)

    @classmethod
    def fingerprint_inputs(cls, motion_file, **others):
        return _changed(_path(motion_file))


class MotionLoRA(Node):
    """Node that merges a motion LoRA of AnimateDiff into the motion module that is loaded before it."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMotionLoRA",
            display_name="Motion LoRA",
            category="stillmotion/load",
            description="Adds a motion LoRA of AnimateDiff, a camera move or a trained motion, to its motion module.",
            search="animatediff lora, motion lora loader, camera motion, pan left, zoom in, tilt, roll",
            inputs=[
                io.Model.Input("model", tooltip="A model behind the STUNet Loader; several LoRAs can be chained."),
                _file_input(
                    "motion_lora",
                    "A motion LoRA in models/stillmotion or animatediff_motion_lora, made for the module that is"
                    " loaded: AnimateDiff's own are for its version 2.",
                    ANIMATEDIFF_LORA,
                ),
                _lora_strength(
                    "strength", "Factor of what the LoRA changes. 1: as trained, 0: nothing, below 0: the other way."
                ),
            ],
            outputs=[io.Model.Output("video_model", display_name="model")],
        )

    @classmethod
    def execute(cls, model, motion_lora, strength) -> io.NodeOutput:
        from .motion_lora import with_motion_lora  # here, for it would slow down ComfyUI's start

        return io.NodeOutput(with_motion_lora(model, _lora_path(motion_lora), strength))

    @classmethod
    def fingerprint_inputs(cls, motion_lora, **others):
        return _changed(_lora_path(motion_lora))


def _lora_path(file: str) -> Path:
    return _path(file, ANIMATEDIFF_LORA)
