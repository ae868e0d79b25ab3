"""The released network of HiGen's authors, to and from an image U-Net in ldm names and an inflation.

Source: HiGen (Qing et al. 2023, arXiv 2312.04483) and its released network, `UNetSD_HiGen`: a U-Net of Stable
Diffusion 2.1's shape whose every weight was trained further, with its temporal parts between.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from ..config import Appearance, InflationConfig, Motion, Prior, Resampler, Temporal
from ..inflation import Inflation
from ..motion_file import MotionInfo
from ..sites import Structure, structure_from_ldm
from . import motion_adapter
from .modules import Format, Tensors

NAME = "HiGen"

CONVOLUTION = "temopral_conv"
"""Misspelt in the files of all networks of the authors' collection, VGen."""

FIRST, TRANSFORMER = "input_blocks.0", 2
"""The block of one layer less, and the place of the transformer over frames in all others."""

LAYER = re.compile(r"(?P<block>(?:in|out)put_blocks\.\d+|middle_block)\.(?P<layer>\w+)\.(?P<rest>.+)")

OWN = {
    "prior": {"conv": "img_embedding"},
    "motion": {"first": "msim_embedding.0", "last": "msim_embedding.2"},
    "appearance": {"first": "asim_embedding.0", "last": "asim_embedding.2"},
}
"""Layers of the parts that no other network of theirs has, our name -> theirs."""

COLUMNS = "asim_embedding.0.weight"
"""As wide as clips are long."""

TEXT = "context_embedding"
TEXT_BLOCK = f"{TEXT}.context_transformer"
TEXT_LAYERS = {
    "attentions.0.norm": "norm1",
    "attentions.0.to_q": "attn1.to_q",
    "attentions.0.to_k": "attn1.to_k",
    "attentions.0.to_v": "attn1.to_v",
    "attentions.0.out": "attn1.to_out.0",
    "attentions.1.norm": "norm2",
    "attentions.1.to_q": "attn2.to_q",
    "attentions.1.to_k": "attn2.to_k",
    "attentions.1.to_v": "attn2.to_v",
    "attentions.1.out": "attn2.to_out.0",
    "feed_forward.norm": "norm3",
    "feed_forward.expand": "ff.net.0.proj",
    "feed_forward.out": "ff.net.2",
}


def is_higen(names: Collection[str]) -> bool:
    own = tuple(f"{layer}." for layers in OWN.values() for layer in layers.values())
    return any(name.startswith(own) for name in names)


def is_of_vgen(names: Collection[str]) -> bool:
    """Tell whether these are names of a network of VGen, HiGen's or another."""
    return is_higen(names) or any(f".{CONVOLUTION}." in name for name in names)


def from_higen(tensors: Tensors) -> tuple[dict[str, Tensor], MotionInfo, dict[str, Tensor]]:
    """Return the image U-Net in ldm names, and the inflation, of the authors' network, of any widths.

    Nearly all tensors are the given ones under other names. The U-Net's are whatever is left: they are known to be
    whole when one is built of them.

    Raises:
        ValueError: a tensor of the inflation is missing or of another shape, or there is no such U-Net.
    """
    structure, config = _structure(tensors), _config(tensors)
    info = MotionInfo(
        config,
        structure,
        prediction="v_prediction",
        zero_snr=True,
        frames=_needed(tensors, COLUMNS, 2)[1],
        fps=8.0,
        width=448,
        height=256,
        positions=None,
        options={"format": NAME},
    )
    parts = _parts(info)
    _check(tensors, parts)
    motion = {ours: _joined(ours, [tensors[name] for name in names]) for ours, (names, _) in parts.items()}
    taken = {name for names, _ in parts.values() for name in names}
    layers = {theirs: ours for ours, theirs in _layers(structure).items()}
    return {_renamed(name, layers): t for name, t in tensors.items() if name not in taken}, info, motion


def to_higen(unet: Tensors, info: MotionInfo, motion: Tensors) -> dict[str, Tensor]:
    """Return the inverse of `from_higen`.

    Raises:
        ValueError: the inflation has other parts than the authors' network.
    """
    layers = _layers(info.structure)
    theirs = {_renamed(name, layers): tensor for name, tensor in unet.items()}
    if info.config != _config_like(info.config):
        raise ValueError("it has other parts than HiGen's release, or such as were trained otherwise")
    for ours, (names, _) in _parts(info).items():
        theirs |= dict(zip(names, _split(ours, motion[ours], len(names))))
    return theirs


def _needed(tensors: Tensors, name: str, dimensions: int) -> torch.Size:
    """Return the shape of a tensor that the sizes are read off."""
    if name not in tensors:
        raise ValueError(f"it lacks {name}")
    if tensors[name].ndim != dimensions:
        raise ValueError(f"it holds {name} with shape {tuple(tensors[name].shape)}, not of {dimensions} dimensions")
    return tensors[name].shape


def _structure(tensors: Tensors) -> Structure:
    """Read the structure off the U-Net's tensors, without the transformers over frames, which look like its own."""
    shapes = {}
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if match and tensor.ndim and match["block"] != FIRST and match["layer"] != str(TRANSFORMER):
            # on the way down, a resize is the block itself and not its first layer
            name = f"{match['block']}.0.op.{match['rest']}" if match["layer"] == "op" else name
            shapes[name] = tuple(tensor.shape)
    return structure_from_ldm(shapes)


def _config(tensors: Tensors) -> InflationConfig:
    columns = _needed(tensors, COLUMNS, 2)[1]
    _, tokens, width = _needed(tensors, f"{TEXT}.tokens", 3)
    layers = next(n for n in count() if f"{TEXT_BLOCK}.{n}.norm1.weight" not in tensors)
    return _config_of(columns, Resampler(tokens, width, max(layers, 1)))


def _config_of(columns: int, resampler: Resampler) -> InflationConfig:
    return InflationConfig(
        temporal=Temporal(levels=(("convolution", "transformer"),), middle=True, norm_scope="clip"),
        prior=Prior(absent="zero"),
        motion=Motion(order="sin_then_interp", absent="zero"),
        appearance=Appearance(columns, features="DINO", absent="zero"),
        resampler=resampler,
    )


def _config_like(config: InflationConfig) -> InflationConfig | None:
    """Return the config of the authors' network of the same sizes."""
    if not config.appearance or not config.resampler:
        return None
    return _config_of(config.appearance.frames, replace(config.resampler, heads=Resampler.heads))


def _layers(structure: Structure) -> dict[str, str]:
    """Return the layers of the U-Net that they call otherwise, our name -> theirs."""
    names = {"middle_block.2": "middle_block.3"}
    for site in structure.sites():
        if site.kind == "down":
            names[site.name] = site.name.removesuffix(".0")
        elif site.kind == "up" and site.name.endswith(".2"):
            names[site.name] = site.name.removesuffix("2") + "3"
    return names


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    match = next((old for old in layers if name.startswith(f"{old}.")), None)
    return name if match is None else layers[match] + name.removeprefix(match)


Parts = Mapping[str, tuple[list[str], torch.Size]]
"""Each of our parameters: their names of it, or of its parts in a row, and the shape of each of these."""


def _parts(info: MotionInfo) -> Parts:
    with torch.device("meta"):
        inflation = Inflation(info.config, info.structure)
    layers, parts = _layers(info.structure), {}
    for path, module in inflation.parts():
        site, _, part = path.rpartition(".")
        form = Format(NAME, _names(part, info.config), (), norm_scope="clip")
        for parameter, tensor in module.state_dict().items():
            ours = f"{path}.{parameter}"
            names = [_before(site, part, layers) + name for name in form.names(parameter)]
            parts[ours] = names, _split(ours, tensor, len(names))[0].shape
    return parts


def _before(site: str, part: str, layers: Mapping[str, str]) -> str:
    """Return what stands before the names of a part's layers."""
    if part == "convolution":
        return f"{layers.get(site, site)}.{CONVOLUTION}."
    if part == "transformer":
        block = site.rpartition(".")[0]
        return f"{block}.{1 if block == FIRST else TRANSFORMER}."
    return ""


def _names(part: str, config: InflationConfig) -> Mapping[str, str]:
    """Return the layers of a part, our name -> theirs."""
    if part == "convolution":
        # from the second on there is dropout before the convolution
        places = {f"convolutions.{i}.conv": f"conv{i + 1}.{3 if i else 2}" for i in range(4)}
        return places | {f"norms.{i}": f"conv{i + 1}.0" for i in range(4)}
    if part == "resampler" and config.resampler:
        blocks = {
            f"blocks.{k}.{ours}": f"{TEXT_BLOCK}.{k}.{theirs}"
            for k in range(config.resampler.layers)
            for ours, theirs in TEXT_LAYERS.items()
        }
        return blocks | {"": TEXT, "input": f"{TEXT}.input_mapping", "output": f"{TEXT}.output_mapping"}
    return motion_adapter.FORMAT.layers if part == "transformer" else OWN[part]


def _is_convolution(ours: str) -> bool:
    """Tell whether a weight is one of a convolution of theirs, which has a dimension of one more than ours."""
    places = ".conv.weight", ".transformer.proj_in.weight", ".transformer.proj_out.weight"
    return ours.endswith(places) and not ours.endswith("prior.conv.weight")


def _split(ours: str, tensor: Tensor, number: int) -> list[Tensor]:
    """Return one of our parameters as theirs."""
    if number > 1:
        return [rows.clone() for rows in tensor.chunk(number)]  # else files would hold the whole for every part
    return [tensor.unsqueeze(-1) if _is_convolution(ours) else tensor]


def _joined(ours: str, tensors: list[Tensor]) -> Tensor:
    if len(tensors) > 1:
        return torch.cat(tensors)
    return tensors[0].squeeze(-1) if _is_convolution(ours) else tensors[0]


def _check(tensors: Tensors, parts: Parts) -> None:
    expected = {name: shape for names, shape in parts.values() for name in names}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"it lacks {len(missing)} of HiGen's tensors, first {missing[0]}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"it holds {name} with shape {tuple(tensors[name].shape)}; it should be {tuple(shape)}")
    for names, _ in parts.values():
        if len({tensors[name].dtype for name in names}) > 1:
            raise ValueError(f"it holds {names[0]} and {names[1]} in different types of numbers")
