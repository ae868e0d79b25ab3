"""HiGen's release, one pickled network, and the two files that hosts of image models make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...networks.formats.files import kind_of
from ...networks.formats.higen import from_higen, to_higen
from ...networks.motion_file import MotionInfo, check_finite, check_fits, check_numbers, read_motion_file
from ...networks.sites import structure_from_ldm
from .ldm_checkpoint import shapes_of, unet_from_ldm
from .ldm_names import UNET, VAE, under, with_prefix
from .motion_module import read_pickled
from .tensors import STRANGE, Tensors, one_sentence

TEXT_ENCODERS = "cond_stage_model.", "conditioner."
"""Names of a checkpoint's text encoder begin with one of these."""


class Release(NamedTuple):
    """Its image U-Net in ldm names, and its inflation."""

    unet: Tensors
    info: MotionInfo
    motion: Tensors


def release_of(path: Path, tensors: Mapping[str, Tensor]) -> Release:
    """Return the release that is in a file, whose tensors these are, after a check of all of them.

    Raises:
        ValueError: each kind of damage in its own sentence.
    """
    check_numbers(path, {name: kind_of(tensor) for name, tensor in tensors.items()})
    check_finite(path, tensors)
    try:
        with one_sentence("its tensors make no network", STRANGE):
            release = Release(*from_higen(tensors))
            unet_from_ldm(release.unet)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return release


def read_parts(motion_file: Path, model: Path) -> Tensors:
    """Return the authors' network of a motion file and the image model that goes with it, the latter mapped.

    Raises:
        FileNotFoundError, ValueError: the files are damaged, of another kind, or do not fit.
    """
    tensors = read_pickled(model)
    unet = under(UNET, tensors) or tensors
    try:
        with one_sentence("its tensors make no U-Net", STRANGE):
            structure = structure_from_ldm(shapes_of(unet))
            unet_from_ldm(unet)
    except ValueError as error:
        raise ValueError(f"{model} cannot be used: {error}") from error
    info, motion = read_motion_file(motion_file)
    check_fits(motion_file, info, structure)
    try:
        return to_higen(unet, info, motion)
    except ValueError as error:
        raise ValueError(f"{motion_file} cannot be written for higen: {error}") from error


def whole_checkpoint(release: Release, other: Path) -> Tensors:
    """Return a checkpoint of the release's U-Net and the text encoder and autoencoder of another checkpoint.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is of another family.
    """
    tensors, context = read_pickled(other), release.info.structure.context
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(TEXT_ENCODERS)}
    vae = {name: tensor for name, tensor in tensors.items() if name.startswith(VAE)}
    widths = {tensor.shape[-1] for name, tensor in text.items() if name.endswith("token_embedding.weight")}
    if not vae or not widths:
        raise ValueError(f"{other} holds no {'autoencoder' if widths else 'text encoder'}; give a whole checkpoint")
    if widths != {context}:
        raise ValueError(
            f"{other} has a text encoder {widths.pop()} wide; HiGen's release needs that of Stable Diffusion 2.x,"
            f" {context} wide"
        )
    return with_prefix(UNET, release.unet) | text | vae
