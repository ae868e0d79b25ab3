"""What networks see in measured clips: CLIP's numbers, HiGen's factors, and how far one set is from another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...samplers.factors import appearance_factor, appearance_similarity, motion_factors
from ..base.clip_model import ClipModel, clipsim, consistency, load_clip
from ..base.features import FeatureModel, load_feature_model
from ..base.i3d import FRAMES, I3d, load_i3d
from ..base.load import Base, encode_frames, load_base
from ..clips.cache import cached, content_hash, encode_clip_frames, joined, name_of, to_network, weights_hash
from ..clips.decoding import CELL
from ..clips.shards import opened
from ..clips.source import Source
from ..show.progress import counted, working
from .clips import ClipFrames, Measured
from .statistics import frechet_distance

AT_ONCE, PIXELS = 16, 16 * 512 * 320  # frames that a network sees at a time, and pixels of all of them
ENOUGH = 256  # clips from which on a Fréchet distance orders sets


@dataclass(frozen=True)
class Seer:
    """A network's view of frames: (n, 3, height, width) in [-1, 1] to (n, width); `name` is a hash of its weights."""

    name: str
    of_frames: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Networks:
    """Those that were asked for. `features` are what the appearance factor and the Fréchet distance are measured on."""

    clip: ClipModel | None = None
    clip_images: Seer | None = None
    features: Seer | None = None
    base: Base | None = None
    i3d: I3d | None = None


def load_networks(clip: Path | None, features: Path | None, base: Path | None, fvd: Path | None) -> Networks:
    whole = load_clip(clip) if clip else None
    images = seer_of(whole.images, whole.of_frames, "middle square") if whole else None
    look = load_feature_model(features) if features else None
    seer = seer_of(look, look.of_frames, "whole frame") if look else images
    return Networks(whole, images, seer, load_base(base) if base else None, load_i3d(fvd) if fvd else None)


def seer_of(model: FeatureModel, of_frames: Callable[[Tensor], Tensor], what: str) -> Seer:
    """Return the view of a model, which computes on a GPU where there is one from now on."""
    model.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Seer(f"{what}, {weights_hash(model.model)}", of_frames)


def chunks_of(source: Source, fps: float | None) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, a few at a time, uint8 (frames, height, width, 3): of large ones fewer, for
    what a network makes of them on its way is many times as large."""
    chunk = []
    for frame in ClipFrames(source, fps):
        chunk.append(frame)
        if len(chunk) == AT_ONCE or len(chunk) * frame[..., 0].size >= PIXELS:
            yield np.stack(chunk)
            chunk = []
    if chunk:
        yield np.stack(chunk)


def embeddings(source: Source, seer: Seer, fps: float | None, cache: Path) -> Tensor:
    """Return what a network sees in each frame of a clip, (frames, width), from the cache or computed now."""
    with opened(source) as clip:
        path = cache / f"{name_of('seen', content_hash(clip.path), fps, seer.name)}.safetensors"
        return cached(path, lambda: joined(seer.of_frames(to_network(chunk)) for chunk in chunks_of(clip, fps)))


def network_numbers(clip: Measured, networks: Networks, fps: float | None, cache: Path) -> dict[str, float]:
    """Return the numbers of one clip that need a network, by the names of METRICS: those whose network there is."""
    numbers, source = {}, clip.source
    if networks.clip:
        seen = embeddings(source, networks.clip_images, fps, cache)
        numbers["consistency"] = consistency(seen)
        numbers["clipsim"] = clipsim(seen, networks.clip.of_text(source.caption)) if source.caption else math.nan
    if networks.features:
        seen = embeddings(source, networks.features, fps, cache)
        numbers["appearance_factor"] = appearance_factor(appearance_similarity(seen)).item()
    if networks.base:
        numbers["motion_factor"] = motion_factor(source, networks.base, fps, cache)
    return numbers


def motion_factor(source: Source, base: Base, fps: float | None, cache: Path) -> float:
    """Return HiGen's motion factor of a clip, on latents of the base's autoencoder."""
    with opened(source) as clip:
        path = cache / f"{name_of('factor', content_hash(clip.path), fps, weights_hash(base.vae))}.safetensors"

        def measured() -> Tensor:
            cells = (in_cells(chunk) for chunk in chunks_of(clip, fps))
            return motion_factors(encode_clip_frames(cells, base.vae, encode_frames, source.name)).mean()

        return cached(path, measured).item()


def in_cells(frames: np.ndarray) -> np.ndarray:
    """Cut what is no whole cell of a latent off the right and the lower edge."""
    height, width = (side // CELL * CELL for side in frames.shape[1:3])
    return frames[:, :height, :width]


def features_of_set(clips: Sequence[Measured], seer: Seer, fps: float | None, cache: Path) -> dict[str, np.ndarray]:
    """Return two features of each clip, (clips, width): "look", the mean of its frames' embeddings, and "change", the
    mean absolute difference from frame to frame, by which a set of frozen clips is far from one that moves."""
    looks, changes = [], []
    with working("comparing sets", len(clips), "clip") as bar:
        for clip in counted(clips, bar):
            seen = embeddings(clip.source, seer, fps, cache)
            looks.append(seen.mean(0).numpy())
            changes.append(seen.diff(dim=0).abs().mean(0).numpy())
    return {"look": np.stack(looks), "change": np.stack(changes)}


def too_few(counts: dict[str, int]) -> str:
    """Say why the Fréchet distance of sets of so many clips is not to be had, or nothing."""
    few = [f"{name} has {count}" for name, count in counts.items() if count < ENOUGH]
    if not few:
        return ""
    return (
        f"no Fréchet distance of fewer than {ENOUGH} clips ({', '.join(few)}): one half of such a set is far from the"
        " other; --anyway measures it all the same"
    )


def seen_by_i3d(clips: Sequence[Measured], i3d: I3d, fps: float | None, cache: Path) -> dict[str, np.ndarray]:
    """Return "fvd": what I3D sees in the first 16 frames of each clip, (clips, 400).

    Raises:
        ValueError: a clip has fewer.
    """
    name, features = weights_hash(i3d.model), []
    with working("looking at clips by I3D", len(clips), "clip") as bar:
        for clip in counted(clips, bar):
            if clip.numbers.frames < FRAMES:
                raise ValueError(
                    f"{clip.source.name} has {clip.numbers.frames} frames; FVD is of clips of {FRAMES} or more"
                )
            features.append(seen_in_clip(clip.source, i3d, name, fps, cache))
    return {"fvd": torch.cat(features).numpy()}


def seen_in_clip(source: Source, i3d: I3d, name: str, fps: float | None, cache: Path) -> Tensor:
    """Return what I3D, of which `name` is a hash, sees in a clip, (1, 400), from the cache or computed now."""
    with opened(source) as clip:
        path = cache / f"{name_of('i3d', content_hash(clip.path), fps, name)}.safetensors"
        return cached(path, lambda: i3d.of_clip(to_network(first_frames(clip, fps))))


def first_frames(source: Source, fps: float | None) -> np.ndarray:
    return np.stack(list(islice(ClipFrames(source, fps), FRAMES)))


def distances(
    sets: dict[str, list[Measured]], networks: Networks, fps: float | None, cache: Path
) -> dict[str, dict[str, float]]:
    """Return the Fréchet distances of each set to the first, in the look of clips, how it changes, and what I3D sees:
    those whose network there is."""
    real, *others = (seen_in_set(clips, networks, fps, cache) for clips in sets.values())
    names = list(sets)[1:]
    return {name: {k: frechet_distance(found[k], real[k]) for k in real} for name, found in zip(names, others)}


def seen_in_set(clips: Sequence[Measured], networks: Networks, fps: float | None, cache: Path) -> dict[str, np.ndarray]:
    looks = features_of_set(clips, networks.features, fps, cache) if networks.features else {}
    return looks | (seen_by_i3d(clips, networks.i3d, fps, cache) if networks.i3d else {})
