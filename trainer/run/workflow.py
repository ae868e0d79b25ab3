"""A ComfyUI workflow that uses a motion file: a shipped template, filled in."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from ...networks.motion_file import MotionInfo
from ...networks.motion_info import Over
from ..base.tokenizer import clip_tokenizer
from ..clips.words import comfy_prompt
from .sample import EARLY

TEMPLATES = Path(__file__).resolve().parents[2] / "workflows"
TEMPLATE, OF_A_STILL = TEMPLATES / "few_shot_motion.json", TEMPLATES / "spatial_prior.json"
OF_AN_IMAGE = TEMPLATES / "image_to_video.json"
WITH_DIALS = TEMPLATES / "motion_factor.json"
WHOLE = "temporal", "resampling", "mapping", "tokens", "motion", "appearance", "condition"
"""Parts that the loader for few-shot motion alone does not speak of."""
GUIDANCE = "StillmotionMotionAppearanceGuidance"


def write_workflow(
    path: Path, base: str, motion: str, info: MotionInfo, caption: str, *, base_is_folder: bool = False
) -> None:
    """Write the graph of the previews for ComfyUI's editor: checkpoint and motion file to an MP4 and a WebP.

    Where the file has a spatial prior, a still by the image model is what the clip is made of; where it was trained
    with pixels that are given, an image is its first frame; where it has dials, they are set to what half of the
    training clips lie below.

    Args:
        base, motion: names as ComfyUI's loaders will list them.
        base_is_folder: the base is a diffusers folder, which another loader opens than a checkpoint file.
        caption: what the prompt says; the negative prompt stays empty, as in training.
    """
    config = info.config
    workflow = _read(_template_of(info))
    nodes = {node["type"]: node for node in workflow["nodes"]}
    loader = nodes.get("StillmotionSTUNetLoader") or nodes["StillmotionRecurrentMotionLoRA"]
    prompt = next(node for node in workflow["nodes"] if node.get("title") == "Prompt")
    prompt["widgets_values"] = [comfy_prompt(caption, clip_tokenizer())]
    nodes["MarkdownNote"]["widgets_values"] = [_note(base, base_is_folder, motion, info)]
    nodes["CheckpointLoaderSimple"]["widgets_values"] = [base]
    loader["widgets_values"][0] = motion
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            frames = 1 if node["widgets_values"][2] == 1 else info.frames
            node["widgets_values"] = [info.width, info.height, frames]
        if node["type"] == "ImageScale":
            node["widgets_values"][1:3] = info.width, info.height
        if node["type"] == "StillmotionVideoInpaint":
            node["widgets_values"][1] = info.frames
        if node["type"] == "KSampler":
            _set_steps(node, info.options)
    if config.motion or config.appearance:
        _add_guidance(workflow, nodes["KSampler"], info)
    _set_sampler(workflow, info.options)
    if info.over:
        _add_ground(workflow, loader, _loadable(info.over))
    nodes["CreateVideo"]["widgets_values"][0] = info.fps
    nodes["SaveAnimatedWEBP"]["widgets_values"][1] = info.fps
    if any(getattr(config, part) for part in WHOLE):
        _load_whole(loader, motion)
    if base_is_folder:
        _load_folder(nodes["CheckpointLoaderSimple"])
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _template_of(info: MotionInfo) -> Path:
    if info.config.prior:
        return OF_A_STILL
    return OF_AN_IMAGE if info.config.condition or info.options.get("first_frame") == "clean" else TEMPLATE


def _set_steps(node: dict, options: dict) -> None:
    """Have KSampler sample as the previews did."""
    seed, after, steps, cfg, *others = node["widgets_values"]
    steps, cfg = options.get("preview_steps", steps), options.get("guidance", cfg)
    node["widgets_values"] = [seed, after, steps, cfg, *others]


def _add_guidance(workflow: dict, sampler: dict, info: MotionInfo) -> None:
    """Put the dials that the file has before the sampler of the clip: the node of another shipped graph."""
    node = next(n for n in _read(WITH_DIALS)["nodes"] if n["type"] == GUIDANCE)
    node["id"] = workflow["last_node_id"] = workflow["last_node_id"] + 1
    link = workflow["last_link_id"] = workflow["last_link_id"] + 1
    entry = next(socket for socket in sampler["inputs"] if socket["name"] == "model")
    before = next(found for found in workflow["links"] if found[0] == entry["link"])
    before[3:5], entry["link"] = [node["id"], 0], link
    workflow["links"].append([link, node["id"], 0, sampler["id"], 0, "MODEL"])
    workflow["nodes"].append(node)
    x, y = sampler["pos"]
    node |= {"title": "How much happens in it", "pos": [x, y + 780], "order": len(workflow["nodes"])}
    node["inputs"] = [{"name": "model", "type": "MODEL", "link": before[0]}]
    node["outputs"][0]["links"] = [link]
    for unused in node["outputs"][1:]:
        unused["links"] = None
    node["widgets_values"][:3] = _dials(info)


def _add_ground(workflow: dict, motion: dict, ground: str) -> None:
    """Put the loader of the motion model that the motion was learnt on top of before the motion's own."""
    node = copy.deepcopy(motion)
    node["id"] = workflow["last_node_id"] = workflow["last_node_id"] + 1
    link = workflow["last_link_id"] = workflow["last_link_id"] + 1
    entry = motion["inputs"][0]
    before = next(found for found in workflow["links"] if found[0] == entry["link"])
    before[3:5], entry["link"] = [node["id"], 0], link
    workflow["links"].append([link, node["id"], 0, motion["id"], 0, "MODEL"])
    node |= {"title": "The motion model below it", "order": len(workflow["nodes"])}
    node["outputs"][0]["links"] = [link]
    node["inputs"] = [{"name": "model", "type": "MODEL", "link": before[0]}]
    _load_whole(node, ground)
    x, y = motion["pos"]
    node["pos"] = [x, y - node["size"][1] - 60]
    workflow["nodes"].append(node)


def _loadable(over: Over) -> str:
    """Return the name under which the loader can have a motion model: pickled files and folders are to be converted."""
    name = Path(over.name)
    return over.name if name.suffix.lower() == ".safetensors" else f"{over.name.removesuffix('.ckpt')}.safetensors"


def _dials(info: MotionInfo) -> list:
    """Return both factors, of which half of the training clips have less, and which of them the file takes."""
    motion, appearance = (
        info.factors.get(name, [start] * 3)[1] for name, start in (("motion", 500), ("appearance", 0))
    )
    names = [name for name in ("motion", "appearance") if getattr(info.config, name)]
    return [float(round(motion)), min(1.0, max(0.0, appearance)), " and ".join(names)]


def _read(template: Path) -> dict:
    return json.loads(template.read_text(encoding="utf-8"))


def _set_sampler(workflow: dict, options: dict) -> None:
    """Put MG Guidance Sampler, whose first sockets are the same, in the place of the last KSampler where the previews
    had it."""
    node = [node for node in workflow["nodes"] if node["type"] == "KSampler"][-1]
    seed, after, steps, cfg, *others = node["widgets_values"]
    early, alpha = options.get("guidance_early") or cfg, options.get("mitigation", 0)
    if alpha or early != cfg:
        limits = [0.5, "one-sided", True, 0.0, 1.0]  # the node's own defaults
        node["type"] = node["properties"]["Node name for S&R"] = "StillmotionMGGuidanceSampler"
        node["properties"]["cnr_id"] = "stillmotion"
        node["widgets_values"] = [seed, after, steps, *others, early, cfg, EARLY, alpha, *limits]
        node["size"] = [340, 560]
        for other in workflow["nodes"]:
            if other["pos"][0] == node["pos"][0] and other["pos"][1] > node["pos"][1]:
                other["pos"][1] += 270


def _load_whole(node: dict, motion: str) -> None:
    """Put the loader for all kinds there, which files with more than few-shot motion need; it has these widgets."""
    node["type"] = node["properties"]["Node name for S&R"] = "StillmotionSTUNetLoader"
    node["widgets_values"], node["size"] = [motion, 1.0, 0, "from file", "", ""], [360, 240]


def _load_folder(node: dict) -> None:
    """Put core's loader of diffusers folders there, with the outputs of the one for files and the folder as its widget.
    It recognises models of Stable Diffusion's own shapes alone."""
    node["type"] = node["properties"]["Node name for S&R"] = "DiffusersLoader"


def _of_ground(info: MotionInfo) -> str:
    if info.over is None:
        return ""
    name = _loadable(info.over)
    convert = f"`python -m trainer convert --input {info.over.name} --output {name}` makes it; put it"
    how = "put it" if name == info.over.name else convert
    return (
        f"\n\nIt was learnt on top of `{info.over.name}`, which the STUNet Loader puts under it: {how} into"
        " `models/stillmotion` too, unless it is listed already."
    )


def _note(base: str, base_is_folder: bool, motion: str, info: MotionInfo) -> str:
    file, folder = "`models/checkpoints`", "`models/diffusers` (the whole folder, with its `model_index.json`)"
    return (
        f"## {motion}\n\nPut this motion file into `ComfyUI/models/stillmotion` and its base `{base}` into"
        f" {folder if base_is_folder else file}, choose both here, and queue.{_of_ground(info)}\n\nIt was trained on"
        f" {info.frames} frames of {info.width} x {info.height} pixels at {info.fps:g} frames a second. *batch_size* of"
        " the empty latent is the number of frames."
    )
