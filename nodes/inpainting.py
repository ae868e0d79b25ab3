"""Known pixels of a clip in the host's terms: from IMAGE and MASK to what a model is told and a sampler begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import comfy.utils
import node_helpers
import torch
from torch import Tensor
from torch.nn import functional as F

from ..samplers import conditions
from ..samplers.colours import colours_matched
from ..samplers.conditions import CELL, KnownPixels
from ..samplers.masks import feathered, filled, for_frames, grown
from ..samplers.strengths import parse_factors, parse_frames
from .known import sees_it_clean
from .settings import KEY

log = logging.getLogger("stillmotion")

NODE = "Video Inpaint / Cinemagraph"

CONDITION = "the motion file's condition"
FIRST_FRAME = "its first frame, clean as in the motion file's training"
CHECKPOINT = "the checkpoint's own inpainting channels"
NOISE_MASK = "the noise mask alone"
"""Ways to tell a model what is known."""


def prepared_mask(mask: Tensor | None, image: Tensor, fill: bool, grow: int, feather: int) -> Tensor | None:
    """Return a MASK in the size of an IMAGE, (n, height, width), 1 where pixels are to be made; None: there is none."""
    mask = own_mask(mask, image)
    if mask is None:
        return None
    return feathered(grown(filled(mask) if fill else mask, grow), feather)


def own_mask(mask: Tensor | None, image: Tensor) -> Tensor | None:
    """Return a MASK in the size of an IMAGE; without one, the image's alpha, 0 where pixels are to be made. The host's
    placeholder of 64 x 64 zeros is no mask."""
    if mask is None:
        return 1 - image[..., 3] if image.shape[-1] == 4 else None
    return None if mask.shape[-2:] == (64, 64) and not mask.any() else fitted(mask, image)


def fitted(mask: Tensor, image: Tensor) -> Tensor:
    """Return a MASK, with a batch or without, as (n, height, width) in the size of an IMAGE: resized and cut as the
    host does it."""
    height, width = image.shape[1:3]
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return comfy.utils.common_upscale(mask, width, height, "bilinear", "center")[:, 0].clamp(0, 1)


def needed(mask: Tensor | None, mode: str) -> Tensor:
    """Return the mask. Raise ValueError where there is none."""
    if mask is None:
        raise ValueError(
            f"{NODE} has no mask, and '{mode}' needs one: paint it in the Mask Editor of Load Image, white where the"
            " clip is to be made."
        )
    return mask


def without(given: KnownPixels, mask: Tensor | None) -> KnownPixels:
    """Return known pixels but for those of a mask, where there is one."""
    if mask is None:
        return given
    return replace(given, known=given.known * (1 - for_frames(mask, len(given.known)).to(given.known)))


def image_to_video(image, mask, frames: int, strength: float) -> KnownPixels:
    if len(image) != 1:
        raise ValueError(
            f"{NODE} has {len(image)} images, and 'image to video' takes one: use 'key frames' to give several."
        )
    return without(conditions.still(image, frames, strength), mask)


def key_frames(image, mask, frames: int, positions: tuple[int, ...], strengths: tuple[float, ...]) -> KnownPixels:
    strengths = strengths * len(positions) if len(strengths) == 1 else strengths
    return without(conditions.key_frames(image, positions, frames, strengths), mask)


def inpaint(image, mask) -> KnownPixels:
    return conditions.hole(image, needed(mask, "inpaint"))


def outpaint(image, mask, frames: int, sides: tuple[int, int, int, int]) -> KnownPixels:
    """A still is repeated; what is outside of it begins as its border, and is not told to the model."""
    video = image[..., :3].expand(frames, -1, -1, -1) if len(image) == 1 else image[..., :3]
    given = conditions.canvas(video, *sides)
    left, top, right, bottom = sides
    border = F.pad(video.movedim(-1, 1), (left, right, top, bottom), mode="replicate").movedim(1, -1)
    outer = None if mask is None else F.pad(mask, (left, right, top, bottom))
    return without(replace(given, frames=border), outer)


def cinemagraph(image, mask, frames: int) -> KnownPixels:
    if len(image) != 1:
        raise ValueError(f"{NODE} has {len(image)} images, and a cinemagraph is made of one: give the still alone.")
    return conditions.cinemagraph(image, needed(mask, "cinemagraph"), frames)


def way_of(model, mode: str) -> str:
    """Return how a MODEL is told what is known.

    Raises:
        ValueError: it is no image model with 4-channel latents.
    """
    if (kind := model.get_model_object("latent_format")).latent_dimensions != 2 or kind.latent_channels != 4:
        raise ValueError(
            f"{NODE} is for Stable Diffusion's image models with a motion file; for video models ComfyUI has nodes of"
            " their own, WanImageToVideo and WanVaceToVideo for example."
        )
    settings = model.get_attachment(KEY) or ()
    if any(s.motion.info.config.condition for s in settings):
        return CONDITION
    if mode == "image to video" and any(map(sees_it_clean, settings)):
        return FIRST_FRAME
    return CHECKPOINT if "masked_image" in getattr(model.model, "concat_keys", ()) else NOISE_MASK


def latent_of(vae, given: KnownPixels, keep: bool) -> dict:
    """Return what the sampler begins with: every frame as it was given, or as the nearest one that was.

    Args:
        keep: the sampler puts known cells back at every step, those that are known in part by that part.
    """
    samples = conditions.once_for_equal(vae.encode)(given.frames[conditions.nearest_known(given)])
    if not keep:
        return {"samples": samples}
    made = 1 - given.known * given.strengths.clamp(max=1).view(-1, 1, 1)
    return {"samples": samples, "noise_mask": F.max_pool2d(made[:, None], CELL)}


def told(conds: list, encode: Callable, given: KnownPixels) -> list:
    """Return conditionings with what a checkpoint of 9 channels is told of each frame, as it was trained to see it."""
    latents, cells = conditions.condition(given, encode, blank="vae_grey")
    values = {"concat_latent_image": latents, "concat_mask": 1 - cells}
    return [node_helpers.conditioning_set_values(cond, values) for cond in conds]


def kept(clip: Tensor, given: Tensor, mask: Tensor, feather: int, match: float = 0.0) -> Tensor:
    """Return a decoded clip with what was given put back where the mask is 0, in the size that was given, and before
    that, by `match`, with the colours of what was given.

    Raises:
        ValueError: they have other numbers of frames, or the clip is smaller.
    """
    height, width = given.shape[1:3]
    if len(clip) != len(given) or clip.shape[1] < height or clip.shape[2] < width:
        raise ValueError(
            f"The clip is {conditions.sized(clip)}, what was given {conditions.sized(given)}: wire 'given' and 'mask'"
            f" of the {NODE} that this clip was sampled from."
        )
    known = KnownPixels.of(given, 1 - for_frames(mask, len(given)))
    return conditions.composited(colours_matched(clip[:, :height, :width, :3], known, match), known, feather)


def untold(given: KnownPixels) -> Tensor:
    """Return the mask of all that need not be kept exactly: what is to be made, and frames given at part strength."""
    return torch.where((given.strengths < 1).view(-1, 1, 1), 1.0, given.mask)


def of_mode(mode: dict, image: Tensor, mask: Tensor | None) -> KnownPixels:
    """Return what is known of a clip by the node's choice, a dict of its name and of its own inputs."""
    own = {name: value for name, value in mode.items() if name != "mode"}
    if mode["mode"] == "outpaint":
        own = {"frames": own["frames"], "sides": tuple(own[side] for side in ("left", "top", "right", "bottom"))}
    if mode["mode"] == "key frames":
        own["positions"] = parse_frames(own["positions"], "positions", '"0, -1"')
        own["strengths"] = parse_factors(own["strengths"], "strengths", '"1, 0.5" or one number', 1.0) or (1.0,)
    return BUILT[mode["mode"]](image, mask, **own)


BUILT = {
    "image to video": image_to_video,
    "key frames": key_frames,
    "inpaint": inpaint,
    "outpaint": outpaint,
    "cinemagraph": cinemagraph,
}


def report(given: KnownPixels, masks: int, mode: str, way: str) -> str:
    """Return what is given, of so many masks, and how the model is told, for the log and the node."""
    frames = len(given.known)
    whole, empty = ((given.known.flatten(1) == value).all(1).sum().item() for value in (1, 0))
    text = (
        f"{mode}: {whole} of {frames} frames are given whole, {frames - whole - empty} in part; the model is told by"
        f" {way}."
    )
    spread = f" {masks} masks are spread over {frames} frames." if masks not in (0, 1, frames) else ""
    return text + spread + (" Nothing is left to be made." if whole == frames else "")


def say(node: str | None, text: str) -> None:
    """Write a text into the log and onto a node of the page, where there is one."""
    from server import PromptServer  # the host's; here and not above: it is not there while the host starts

    log.info("%s: %s", NODE, text)
    if node is not None and (server := getattr(PromptServer, "instance", None)):
        server.send_progress_text(text, node)
