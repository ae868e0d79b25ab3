"""The frozen image model that training builds on: reading it from a folder or a file, and using its parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, get_args

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ...networks.recognise import kind_of_names
from ...networks.shown import LONGEST
from ...networks.sites import FAMILY_OF_CONTEXT
from ...networks.tensor_file import is_finite
from ...samplers.schedules import Prediction
from .folder import Read, check_autoencoder, read_folder
from .ground import Ground
from .ldm_checkpoint import autoencoder_from_ldm, checkpoint_parts, text_encoder_from_ldm, unet_from_ldm
from .tensors import STRANGE, one_sentence, read_outlines, read_tensors, told
from .tokenizer import clip_tokenizer

log = logging.getLogger("stillmotion")

Autoencoder: TypeAlias = AutoencoderKL | AutoencoderTiny


@dataclass
class Base:
    """A text-to-image model in parts, with the noise schedule and the prediction that its U-Net was trained for.

    `zero_snr`: the schedule is rescaled to end in noise alone. `ground`: a motion model on it, frozen as it is, which
    another motion is learnt on top of; schedule and prediction are then those that it was trained on.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: Autoencoder
    family: str = "sd15"
    schedule: str = "scaled_linear"
    prediction: str = "epsilon"
    zero_snr: bool = False
    ground: Ground | None = None


def load_base(path: Path, dtype: torch.dtype = torch.float32) -> Base:
    """Return a frozen base model of the SD1.5 family; nothing is downloaded.

    Args:
        path: a diffusers folder, or one checkpoint file: .safetensors, or pickled tensors and nothing but tensors.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: what is there is damaged, no Stable Diffusion model, or one of another family.
    """
    base = _read(path, dtype, read_tensors)
    for name, part in (("U-Net", base.unet), ("text encoder", base.text_encoder), ("autoencoder", base.vae)):
        check_finite(path, name, part)
        part.eval().requires_grad_(False)
    return base


def check_base(path: Path) -> None:
    """Hold a base to all that `load_base` and training ask of it but its numbers, by the headers of its files alone.

    Raises:
        FileNotFoundError, ValueError: as of `load_base` and `check_trainable`.
    """
    check_trainable(path, _read(path, torch.float32, read_outlines))


def _read(path: Path, dtype: torch.dtype, read: Read) -> Base:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no base model at {path}; give a diffusers folder or a .safetensors file")
    try:
        return _from_folder(path, dtype, read) if path.is_dir() else _from_file(path, dtype, read)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used as a base: {told(error, LONGEST)}") from error


def check_trainable(path: Path, base: Base) -> None:
    """Raise ValueError where a base's prediction and schedule are none that the losses are made for."""
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


def check_finite(path: Path, name: str, part: nn.Module) -> None:
    """Refuse a broken base here: in training it would look like a run that diverged."""
    for key, tensor in part.state_dict().items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ValueError(f"{path} cannot be used as a base: its {name} holds NaN or infinity in {key}")


def check_family(unet: UNet2DConditionModel) -> None:
    """Refuse what training cannot use: other families' text encoders, and the extra channels of inpainting."""
    context, channels = unet.config.cross_attention_dim, unet.config.in_channels
    family = FAMILY_OF_CONTEXT.get(context, f"unknown ({context} wide text)")
    if family != "sd15":
        raise ValueError(f"its family is {family}, and only bases of the SD1.5 family can be trained on")
    if channels != 4:
        raise ValueError(f"its U-Net takes {channels} channels, as for inpainting; give a text-to-image model, with 4")


def _from_folder(path: Path, dtype: torch.dtype, read: Read) -> Base:
    unet, text_encoder, tokenizer, vae, schedule = read_folder(path, dtype, check_family, read)
    return Base(unet, text_encoder, tokenizer, vae, **schedule)


def _from_file(path: Path, dtype: torch.dtype, read: Read) -> Base:
    tensors = read(path)
    unet_tensors, text_tensors, vae_tensors = (
        {name: tensor.to(dtype) for name, tensor in part.items()} for part in checkpoint_parts(tensors)
    )
    if not unet_tensors:
        kind = kind_of_names(tensors)
        raise ValueError(f"it holds no U-Net; give a whole checkpoint{f', for it is {kind}' if kind else ''}")
    with one_sentence("its tensors make no U-Net", STRANGE):
        unet = unet_from_ldm(unet_tensors)
    check_family(unet)
    # the marks by which ComfyUI, too, knows models that predict the velocity, and schedules that end in noise alone
    prediction = "v_prediction" if "v_pred" in tensors else "epsilon"
    zero_snr = "ztsnr" in tensors
    text_encoder = text_encoder_from_ldm(text_tensors)
    with one_sentence("its tensors make no autoencoder", STRANGE):
        vae = autoencoder_from_ldm(vae_tensors)
    check_autoencoder(vae)
    return Base(unet, text_encoder, clip_tokenizer(), vae, prediction=prediction, zero_snr=zero_snr)


def encode_frames(vae: Autoencoder, frames: Tensor) -> Tensor:
    """Return scaled latents (n, 4, h/8, w/8) of frames (n, 3, h, w) in [-1, 1]; the mean where the encoder is
    random."""
    encoded = vae.encode(frames)
    latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode_latents(vae: Autoencoder, latents: Tensor) -> Tensor:
    """Return frames (n, 3, 8h, 8w) in [-1, 1] of scaled latents (n, 4, h, w)."""
    return vae.decode(latents / vae.config.scaling_factor).sample.clamp(-1, 1)


def encode_captions(base: Base, captions: Sequence[str]) -> Tensor:
    """Embed captions as the U-Net sees them, (n, 77, 768): CLIP's last hidden state after its final norm, as in
    ComfyUI."""
    ids = token_ids(base.tokenizer, captions).to(base.text_encoder.device)
    return base.text_encoder(ids).last_hidden_state


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return (n, 77) token numbers, padded with the end token; what does not fit is cut off, and the log says so."""
    captions = list(captions)
    for caption, ids in zip(captions, tokenizer(captions, verbose=False).input_ids):
        if len(ids) > 77:
            log.warning("CLIP reads 75 tokens of a caption; the rest of %r is ignored", caption)
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
