"""A base model in a diffusers folder, held to every tensor as one in a single file is.

The libraries' own loaders are not used: they put random weights in the place of missing ones, may run code that a
configuration names, and raise errors of all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...networks.json_text import read_config
from .ldm_checkpoint import LATENT_SCALE, fill, text_encoder_weights
from .tensors import Tensors, one_sentence, read_tensors

M = TypeVar("M", bound=nn.Module)
Read = Callable[[Path], Tensors]

SENTENCE = "a photograph of an astronaut riding a horse on the moon, 35mm"
SENTENCE_IDS = [49406, 320, 8853, 539, 550, 18376, 6765, 320, 4558, 525, 518, 3293, 267, 274, 276, 2848, 49407]
"""What CLIP's tokenizer makes of it: any other one would train the U-Net on other words."""

LARGEST_SETTING, MOST_LAYERS = 2**17, 64
"""Of numbers in a configuration, and of those that count layers; the largest is a vocabulary of 49408."""


class Parts(NamedTuple):
    """What is in a folder. `schedule`: its settings by the names of `Base`, as far as the folder names them."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    vae: AutoencoderKL | AutoencoderTiny
    schedule: dict


def read_folder(
    path: Path, dtype: torch.dtype, check: Callable[[UNet2DConditionModel], None], read: Read = read_tensors
) -> Parts:
    """Return the parts of a folder as diffusers writes them.

    Args:
        check: refuses a U-Net of another family, before the other parts are read.
        read: gives the tensors of a file.

    Raises:
        ValueError: in a phrase, what is missing, damaged or of another model.
    """
    missing = [part for part in ("unet", "text_encoder", "tokenizer", "vae") if not (path / part).is_dir()]
    if missing:
        raise ValueError(f"a diffusers model has a folder {missing[0]}, and this one has none")
    schedule = schedule_of(path)
    vae_class = autoencoder_class(path / "vae" / "config.json")
    unet = _part(path / "unet", UNet2DConditionModel.from_config, "U-Net", dtype, read)
    check(unet)
    vae = _part(path / "vae", vae_class.from_config, "autoencoder", dtype, read)
    check_autoencoder(vae)
    text_encoder = _part(path / "text_encoder", _text_encoder, "CLIP text encoder", dtype, read)
    if text_encoder.config.hidden_size != unet.config.cross_attention_dim:
        raise ValueError(
            f"its text encoder is {text_encoder.config.hidden_size} wide and its U-Net reads text"
            f" {unet.config.cross_attention_dim} wide: the two are of different models"
        )
    return Parts(unet, text_encoder, read_tokenizer(path / "tokenizer", text_encoder), vae, schedule)


def _part(folder: Path, build: Callable[[dict], M], name: str, dtype: torch.dtype, read: Read) -> M:
    """Return a model that is built from a folder's configuration, without memory, and then filled with its weights."""
    config = read_config(folder / "config.json")
    _check_settings(f"{folder.name}/config.json", config)
    tensors = part_tensors(folder, read)
    # the libraries check settings with errors that are nothing but an Exception
    with one_sentence(f"{folder.name}/config.json describes no {name}", (Exception,)):
        with init_empty_weights(include_buffers=False):
            model = build(config)
    tensors = {name: tensor.to(dtype) for name, tensor in _renamed(tensors, model).items()}
    fill(model, tensors, name)
    return model


def _check_settings(name: str, config: dict) -> None:
    """Refuse numbers and lists that no model has, before layers are made of them."""
    for key, value in config.items():
        most = MOST_LAYERS if "layers" in key else LARGEST_SETTING
        for number in _numbers(value):
            if not abs(number) <= most:
                raise ValueError(f"{name} has {key} {number}; it may be at most {most}")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, list):
        if len(value) > MOST_LAYERS:
            yield len(value) + LARGEST_SETTING
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield value


def part_tensors(folder: Path, read: Read) -> Tensors:
    """Return the tensors of a part, of whichever of the names that diffusers and transformers give their files."""
    stems = "diffusion_pytorch_model", "model", "pytorch_model"
    endings = ".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin", ".fp16.bin"
    names = [f"{stem}{ending}" for ending in endings for stem in stems]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"its folder {folder.name} holds no weights, as diffusion_pytorch_model.safetensors")
    try:
        return read(found)
    except ValueError as error:
        raise ValueError(f"{folder.name}/{found.name}: {error}") from error


FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of layers of an autoencoder's attention, in folders that were written before diffusers 0.18."""


def _renamed(tensors: Tensors, model: nn.Module) -> Tensors:
    if isinstance(model, CLIPTextModel):
        names = {name: name.removeprefix("text_model.") for name in tensors}
        return text_encoder_weights(model, {short: tensors[name] for name, short in names.items()})
    return {_present(name): tensor for name, tensor in tensors.items()} if isinstance(model, AutoencoderKL) else tensors


def _present(name: str) -> str:
    block, _, layer = name.partition(".attentions.0.")
    first, _, rest = layer.partition(".")
    return f"{block}.attentions.0.{FORMER_NAMES[first]}.{rest}" if first in FORMER_NAMES else name


TEXT_SETTINGS = {
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), int
    ),
    **dict.fromkeys(("projection_dim", "max_position_embeddings"), int),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), int),
    "layer_norm_eps": float,
    "hidden_act": str,
}
"""Those that say what is computed. Others may name code to be fetched, such as `attn_implementation`."""


def _text_encoder(config: dict) -> CLIPTextModel:
    known = {name: config[name] for name in TEXT_SETTINGS.keys() & config.keys()}
    if wrong := sorted(name for name, value in known.items() if type(value) is not TEXT_SETTINGS[name]):
        raise ValueError(f"its {wrong[0]} is {known[wrong[0]]!r}")
    return CLIPTextModel._from_config(CLIPTextConfig(**known), attn_implementation="sdpa")


def autoencoder_class(file: Path) -> type[AutoencoderKL] | type[AutoencoderTiny]:
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    try:
        return kinds[read_config(file)["_class_name"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"vae/config.json does not name one of {', '.join(kinds)} as its _class_name") from error


def check_autoencoder(vae: AutoencoderKL | AutoencoderTiny) -> None:
    """Refuse latents of another size or scale than the U-Net's."""
    config = vae.config
    scale = LATENT_SCALE if isinstance(vae, AutoencoderKL) else 1.0
    if abs(config.scaling_factor - scale) > 1e-3 or getattr(config, "shift_factor", None):
        raise ValueError(
            f"its autoencoder has a scaling_factor of {config.scaling_factor} in vae/config.json; that of Stable"
            f" Diffusion 1.5 has {scale} and no shift_factor"
        )
    levels = config.block_out_channels if isinstance(vae, AutoencoderKL) else config.encoder_block_out_channels
    resizes = len(levels) - 1
    if config.latent_channels != 4 or resizes != 3:
        raise ValueError(
            f"its autoencoder makes latents of {config.latent_channels} channels and 1/{2**resizes} of the size; that"
            " of Stable Diffusion 1.5 makes 4 channels and 1/8"
        )


def read_tokenizer(folder: Path, text_encoder: CLIPTextModel) -> CLIPTokenizer:
    """Return the tokenizer in a folder, held to what CLIP's makes of a known sentence."""
    with one_sentence("its tokenizer cannot be read", (Exception,)):  # tokenizers knows no other
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(SENTENCE).input_ids
    if ids != SENTENCE_IDS:
        raise ValueError(
            f"its tokenizer makes {shown_ids(ids)} of a sentence of which CLIP's makes {shown_ids(SENTENCE_IDS)}:"
            " files are missing in its folder tokenizer, or are of another model"
        )
    if len(tokenizer) > text_encoder.config.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens and its text encoder {text_encoder.config.vocab_size}"
        )
    return tokenizer


def shown_ids(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + " …"


def schedule_of(path: Path) -> dict:
    """Noise schedule, whether it ends in noise alone, and prediction type, as far as the folder names them."""
    file = path / "scheduler" / "scheduler_config.json"
    config = read_config(file) if file.exists() else {}
    names = {"schedule": "beta_schedule", "prediction": "prediction_type", "zero_snr": "rescale_betas_zero_snr"}
    found = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    for ours, value in found.items():
        if not isinstance(value, bool if ours == "zero_snr" else str):
            raise ValueError(f"scheduler/scheduler_config.json has {names[ours]} {value!r}, which is none")
    return found
