"""A ComfyUI workflow that uses a motion file: the shipped template, filled in."""

from __future__ import annotations

import json
from pathlib import Path

from ...networks.motion_file import MotionInfo
from .sample import EARLY

TEMPLATE = Path(__file__).resolve().parents[2] / "workflows" / "few_shot_motion.json"


def write_workflow(
    path: Path, base: str, motion: str, info: MotionInfo, caption: str, *, base_is_folder: bool = False
) -> None:
    """Write the graph of the previews for ComfyUI's editor: checkpoint and motion file to an MP4 and a WebP.

    Args:
        base, motion: names as ComfyUI's loaders will list them.
        base_is_folder: the base is a diffusers folder, which another loader opens than a checkpoint file.
        caption: the prompt; the negative prompt stays empty, as in training.
    """
    workflow = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in workflow["nodes"]}
    prompt = next(node for node in workflow["nodes"] if node.get("title") == "Prompt")
    prompt["widgets_values"] = [caption]
    nodes["MarkdownNote"]["widgets_values"] = [_note(base, base_is_folder, motion, info)]
    nodes["CheckpointLoaderSimple"]["widgets_values"] = [base]
    nodes["StillmotionRecurrentMotionLoRA"]["widgets_values"][0] = motion
    nodes["EmptyLatentImage"]["widgets_values"] = [info.width, info.height, info.frames]
    _set_sampler(nodes, info.options)
    nodes["CreateVideo"]["widgets_values"][0] = info.fps
    nodes["SaveAnimatedWEBP"]["widgets_values"][1] = info.fps
    config = info.config
    if config.temporal or config.resampling or config.mapping or config.tokens:
        _load_whole(nodes["StillmotionRecurrentMotionLoRA"], motion)
    if base_is_folder:
        _load_folder(nodes["CheckpointLoaderSimple"])
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _set_sampler(nodes: dict[str, dict], options: dict) -> None:
    """Have KSampler sample as the previews did, or put MG Guidance Sampler there, whose first sockets are the same."""
    node = nodes["KSampler"]
    seed, after, steps, cfg, *others = node["widgets_values"]
    steps, cfg = options.get("preview_steps", steps), options.get("guidance", cfg)
    early, alpha = options.get("guidance_early") or cfg, options.get("mitigation", 0)
    node["widgets_values"] = [seed, after, steps, cfg, *others]
    if alpha or early != cfg:
        limits = [0.5, "one-sided", True, 0.0, 1.0]  # the node's own defaults
        node["type"] = node["properties"]["Node name for S&R"] = "StillmotionMGGuidanceSampler"
        node["properties"]["cnr_id"] = "stillmotion"
        node["widgets_values"] = [seed, after, steps, *others, early, cfg, EARLY, alpha, *limits]
        node["size"] = [340, 560]
        for below in ("VAEDecode", "CreateVideo"):
            nodes[below]["pos"][1] += 270


def _load_whole(node: dict, motion: str) -> None:
    """Put the loader for all kinds there, which files with more than few-shot motion need; it has these widgets."""
    node["type"] = node["properties"]["Node name for S&R"] = "StillmotionSTUNetLoader"
    node["widgets_values"] = [motion, 1.0, 0, "from file", "", ""]


def _load_folder(node: dict) -> None:
    """Put core's loader of diffusers folders there, with the outputs of the one for files and the folder as its widget.
    It recognises models of Stable Diffusion's own shapes alone."""
    node["type"] = node["properties"]["Node name for S&R"] = "DiffusersLoader"


def _note(base: str, base_is_folder: bool, motion: str, info: MotionInfo) -> str:
    file, folder = "`models/checkpoints`", "`models/diffusers` (the whole folder, with its `model_index.json`)"
    return (
        f"## {motion}\n\nPut this motion file into `ComfyUI/models/stillmotion` and its base `{base}` into"
        f" {folder if base_is_folder else file}, choose both here, and queue.\n\nIt was trained on {info.frames}"
        f" frames of {info.width} x {info.height} pixels at {info.fps:g} frames a second. *batch_size* of the empty"
        " latent is the number of frames."
    )
