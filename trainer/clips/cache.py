"""Latents of clips and embeddings of captions, kept on disk under the hash of what they were made from.

All frames of a clip are encoded once, whole, at the smallest size that covers the one trained on. Where a training
window starts and which part of the frame it shows is chosen afterwards, so the cache freezes neither.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ...networks.atomic import write_bytes
from ..base.features import FeatureModel
from ..base.load import encode_captions, encode_frames
from ..show.progress import working
from .frames import Frames
from .kinds import picture_files
from .shot import ClipError
from .source import Source

log = logging.getLogger("stillmotion")

FORMAT = 2  # raised when decoding, scaling or the file's layout changes, so that old files are not taken for new ones


def cached(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """Return the tensor in the file `path`; computed and written there when the file is missing or damaged."""
    if path.is_file():
        try:
            return read_tensor(path)
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is damaged and is made again (%s)", path, error)
    tensor = compute().detach().cpu().contiguous()
    write_tensor(path, tensor)
    return tensor


def read_tensor(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        if list(file.keys()) != ["tensor"]:
            raise ValueError("it does not hold one tensor")
        tensor, written = file.get_tensor("tensor"), (file.metadata() or {}).get("sha256")
    if digest(tensor) != written:
        raise ValueError("its content does not match its checksum")
    return tensor


def write_tensor(path: Path, tensor: Tensor):
    """Write a file of one tensor and its checksum."""
    write_bytes(path, save({"tensor": tensor}, {"sha256": digest(tensor)}))


def digest(tensor: Tensor) -> str:
    """Return SHA-256 of a tensor's bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()


def weights_hash(network: nn.Module) -> str:
    """Return SHA-256 of a network's weights, their names, types and shapes, and of the factor that scales its
    latents."""
    state = network.state_dict()
    parts = [[name, str(state[name].dtype), list(state[name].shape), digest(state[name])] for name in sorted(state)]
    scale = getattr(getattr(network, "config", None), "scaling_factor", None)
    return name_of(parts, scale)


def name_of(*parts) -> str:
    """Return a file name for what was made from `parts`."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """Return SHA-256 of a clip's bytes, whatever its name is.

    Raises:
        ClipError: it is no file any more.
    """
    if path.is_dir():
        return name_of([content_hash(picture) for picture in picture_files(path)])
    if not path.is_file():  # a pipe would be waited for, for ever
        raise ClipError("not a file that can be read")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seen_hash(source: Source) -> str:
    """Return `content_hash` of a clip, or of what a camera makes of it."""
    content = content_hash(source.path)
    return name_of(content, asdict(source.camera)) if source.camera else content


def clip_latents(
    source: Source, fps: float, size: tuple[int, int], vae: nn.Module, folder: Path, encode=encode_frames, weights=""
) -> Tensor:
    """Return the latents of all frames of a clip at `fps`, from the cache in `folder` or encoded now.

    Args:
        size: (width, height) in pixels that every frame covers.
        encode: (vae, frames (n, 3, h, w) in [-1, 1]) to scaled latents (n, 4, h/8, w/8).
        weights: `weights_hash(vae)`, where the caller knows it already.

    Returns:
        (frames, 4, height, width) in cells of 8 pixels, at the smallest size that covers `size`, in the type
        in which the VAE computes.
    """
    name = name_of(seen_hash(source), float(fps), size, weights or weights_hash(vae))
    return cached(Path(folder) / f"{name}.safetensors", lambda: encode_clip(source, fps, size, vae, encode))


@torch.no_grad()
def encode_clip(source: Source, fps: float, size: tuple[int, int], vae: nn.Module, encode: Callable) -> Tensor:
    return encode_clip_frames(Frames(source, fps, size=size), vae, encode, source.name)


@torch.no_grad()
def encode_clip_frames(chunks: Iterable[np.ndarray], vae: nn.Module, encode: Callable, name: str = "") -> Tensor:
    """Encode frames uint8 (a few, height, width, 3) as they come, so that no clip is in memory as pixels."""
    weight = next(vae.parameters())
    with working(f"encoding {name}", unit="frame") as bar:
        return joined(_counted(encode(vae, to_network(chunk).to(weight)).cpu(), bar) for chunk in chunks)


def _counted(part: Tensor, bar: tqdm) -> Tensor:
    bar.update(len(part))
    return part


def joined(parts: Iterable[Tensor]) -> Tensor:
    """Return the parts, as they come, one after the other. They are copied into one place that grows: kept one by one
    until the end they would lie scattered among the frames, whose memory could then not be given back."""
    whole, count = torch.empty(0), 0
    for part in parts:
        if count + len(part) > len(whole):
            larger = part.new_empty(2 * count + 8 * len(part), *part.shape[1:])
            if count:
                larger[:count] = whole[:count]
            whole = larger
        whole[count : count + len(part)] = part
        count += len(part)
    return whole[:count].clone()


def clip_features(
    source: Source,
    fps: float,
    size: tuple[int, int],
    folder: Path,
    look: FeatureModel,
    device: torch.device,
    weights: str,
) -> Tensor:
    """Return what an image model sees in every frame of a clip, (frames, width), from the cache or computed now.

    Args:
        device: where it computes.
        weights: `weights_hash(look.model)`.
    """
    name = name_of("features", seen_hash(source), float(fps), size, look.kind, weights)

    def computed() -> Tensor:
        look.model.to(device)
        return joined(look.of_frames(to_network(chunk)) for chunk in Frames(source, fps, size=size))

    return cached(Path(folder) / f"{name}.safetensors", computed)


def to_network(frames: np.ndarray) -> Tensor:
    """Turn uint8 (frames, height, width, 3) into float (frames, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def caption_embedding(caption: str, base, folder: Path, encode=encode_captions, weights="") -> Tensor:
    """Return the embedding of a caption, (77, width), from the cache in `folder` or encoded now.

    Args:
        encode: (base, captions) to embeddings (captions, 77, width).
        weights: `weights_hash(base.text_encoder)`, where the caller knows it already.
    """
    name = name_of(caption, weights or weights_hash(base.text_encoder))
    with torch.no_grad():
        return cached(Path(folder) / f"{name}.safetensors", lambda: encode(base, [caption])[0])


def window_place(
    latents: Tensor, frames: int, cells: tuple[int, int], generator: Generator, crop="center"
) -> tuple[int, ...]:
    """Return where a window of a clip's latents begins, at a random time: its first frame, its top and its left cell.

    The generator is drawn from three times whatever `crop` is, so that changing it changes no other draw.

    Args:
        latents: (all frames, 4, height, width), see `clip_latents`.
        cells: size in latent cells, that is pixels / 8.
        crop: "center", or "random" for a random place.
    """
    (width, height), (all_frames, _, h, w) = cells, latents.shape
    if all_frames < frames or h < height or w < width:
        raise ValueError(f"no {frames} frames of {width}x{height} cells in latents of {all_frames} of {w}x{h}")
    spare = torch.tensor([all_frames - frames, h - height, w - width])
    start, top, left = (torch.rand(3, generator=generator, dtype=torch.float64) * (spare + 1)).long().tolist()
    return (start, top, left) if crop == "random" else (start, (h - height) // 2, (w - width) // 2)


def cut(latents: Tensor, place: tuple[int, ...], frames: int, cells: tuple[int, int]) -> Tensor:
    """Return the window of `frames` of `cells` (width, height) that begins at `place`."""
    (start, top, left), (width, height) = place, cells
    return latents[start : start + frames, :, top : top + height, left : left + width]


def training_window(
    latents: Tensor, frames: int, cells: tuple[int, int], generator: Generator, crop="center"
) -> Tensor:
    """Cut a window out of a clip's latents; arguments as of `window_place`."""
    return cut(latents, window_place(latents, frames, cells, generator, crop), frames, cells)
