"""What a MODEL remembers of the motion files on it, and what nodes ask of that before any of them runs.

Kept apart from what attaches and runs motion files, which is loaded when a node first does so: it would slow down
ComfyUI's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import comfy.model_sampling
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from .asks import NO_ASKS, Asks

if TYPE_CHECKING:
    from ..networks.inflation import Attached
    from .motion import LoadedMotion

KEY = "stillmotion"

EVOLVED, EVOLVED_PARAMS = "ADE", "ADE_params"
"""What AnimateDiff-Evolved calls its motion models and its settings on a MODEL."""


@dataclass(frozen=True)
class Settings:
    """One motion file of a MODEL with its strengths; keeps the file in memory as long as the MODEL is there.

    Args:
        attached: the file's own inflation; on other devices the host has copies of it, with the same strengths.
        frames_per_clip: 0 where all frames of a LATENT are one clip.
        asks: what the user asks of its prior and its guidance.
    """

    motion: LoadedMotion
    attached: Attached
    frames_per_clip: int = 0
    asks: Asks = NO_ASKS

    def with_mapping(self, on: bool) -> Settings:
        """Return these with the mapping network at the strength of the temporal parts, or off."""
        return replace(self, attached=replace(self.attached, mapping=self.attached.temporal if on else 0.0))

    def halved(self) -> set[int]:
        """Return the levels after which the frame rate is halved."""
        resampling, levels = self.motion.info.config.resampling, self.attached.levels
        halved = resampling.levels if resampling and self.attached.temporal else ()
        return {level for level in halved if not levels or levels[level]}


def with_mapping(model, on: bool):
    """Return a clone of MODEL whose motion files run their mapping networks, or do not; MODEL where that is so."""
    settings = model.get_attachment(KEY) or ()
    switched = tuple(s.with_mapping(on) if s.motion.info.config.mapping else s for s in settings)
    if switched == settings:
        return model
    model = model.clone()
    model.set_attachments(KEY, switched)
    return model


def merged_frames(settings: tuple[Settings, ...]) -> int:
    """Return how many frames become one at the coarsest level."""
    return 2 ** len(set().union(*(s.halved() for s in settings)))


def asked_frames(settings: tuple[Settings, ...]) -> int | None:
    """Return how long a clip is by the motion files of a model; None where the whole LATENT is one clip.

    Raises:
        ValueError: they ask for different lengths.
    """
    asked = {s.frames_per_clip for s in settings if s.frames_per_clip}
    if len(asked) > 1:
        raise ValueError(f"The motion files of this model ask for clips of {sorted(asked)} frames; give one length.")
    return asked.pop() if asked else None


def frames_per_clip(rows: int, settings: tuple[Settings, ...]) -> int:
    """Return how many of a LATENT's `rows` frames make a clip.

    Raises:
        ValueError: the motion files of this model ask for different lengths, or for one that does not divide `rows`.
    """
    frames = asked_frames(settings) or rows
    if rows % frames:
        raise ValueError(f"The latent has {rows} frames, which are no whole number of clips of {frames} frames.")
    return frames


def evolved_window(model) -> int | None:
    """Return the context length of AnimateDiff-Evolved on MODEL, None where it sets none."""
    options = getattr(model.get_attachment(EVOLVED_PARAMS), "context_options", None)
    return getattr(options, "context_length", None)


def predicts(model) -> str:
    """Return what a MODEL predicts, by the host's names of kinds, as the checkpoint has it or a node before has set."""
    own, sampling = model.model.model_type.name, model.object_patches.get("model_sampling")
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION) and not isinstance(sampling, comfy.model_sampling.EDM):
        return "V_PREDICTION"
    is_eps = isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(
        sampling, comfy.model_sampling.V_PREDICTION | comfy.model_sampling.X0
    )
    return "EPS" if is_eps else own


def check_rank(model, shape: Sequence[int]) -> None:
    """Raise ValueError where a MODEL with a U-Net, whose frames are the batch, gets a latent with a time axis."""
    if len(shape) == 5 and isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError(
            f"The latent is a video model's, {tuple(shape)}, and this model takes (frames, channels, height, width):"
            " use Empty Latent Image, with batch_size the number of frames."
        )
