"""The node that gives a sampler noise whose frames share a part."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ..samplers.noise import STRATEGIES, check_share, draw_noise
from .compat import io, seed_input
from .host import KEY, asked_frames, with_mapping

log = logging.getLogger(KEY)


@dataclass(frozen=True)
class ClipNoise:
    """What a NOISE socket carries; it draws when a sampler hands it the latent."""

    seed: int
    strategy: str
    share: float
    printed: bool
    frames: int | None

    def generate_noise(self, latent):
        """Noise like the samples, on the CPU; `batch_index` numbers frames, or clips where these have a time axis.

        Raises:
            ValueError: the latent has several parts, or no whole number of clips.
        """
        samples = latent["samples"]
        if samples.is_nested:
            raise ValueError(
                "The latent has several parts, as video and sound; Mapping-Network Noise is for one of frames alone."
                " Use RandomNoise here."
            )
        noise = draw_noise(
            samples.shape,
            torch.Generator().manual_seed(self.seed),
            self.strategy,
            self.share,
            frames=self.frames,
            printed=self.printed,
            rows=latent.get("batch_index"),
        )
        return noise.to(samples.dtype)


def switch_mapping(model, on: bool):
    """A MODEL whose motion files run their mapping networks, or do not.

    Raises:
        ValueError: it is on, and none of them has one.
    """
    files = [s.motion for s in model.get_attachment(KEY) or () if s.motion.info.config.mapping]
    if on and not files:
        raise ValueError(
            "Mapping is on, and no motion file of this model has a mapping network: switch mapping off, or put the"
            " STUNet Loader with a file that has one before this node."
        )
    if files and not on:
        log.warning("Mapping-Network Noise: mapping is off, the network of %s does not run.", files[0].path.name)
    return with_mapping(model, on)


class MappingNetworkNoise(io.ComfyNode):
    """Noise for clips: what frames have in common before the first step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="StillmotionMappingNetworkNoise",
            display_name="Mapping-Network Noise",
            category="stillmotion/noise",
            description="Noise whose frames share a part, so that a clip starts out calmer. The strategy iid is"
            " RandomNoise of the same seed.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler gets: it says how long a clip is."),
                io.Combo.Input(
                    "strategy",
                    options=list(STRATEGIES),
                    tooltip="iid: nothing is shared. shared, mixed: all frames of a clip have a part in common."
                    " autoregressive, progressive: each frame follows the one before.",
                ),
                io.Float.Input(
                    "share",
                    default=0.2,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much frames have in common; no unit. 0: nothing. shared and autoregressive: up to 1,"
                    " where all frames are equal (LAMP: 0.2). mixed and progressive: at 1 neighbours correlate by 0.5"
                    " and 0.71, more above.",
                ),
                seed_input("The same seed is the same noise, and for iid that of RandomNoise."),
                io.Combo.Input(
                    "variance",
                    options=["preserved", "as printed"],
                    tooltip="as printed: the papers' formulas, where shared and autoregressive noise is too weak and"
                    " makes pictures soft. preserved: every frame has variance 1, as the model expects.",
                ),
                io.Boolean.Input(
                    "mapping",
                    default=False,
                    tooltip="Whether the returned model runs the mapping network of its motion file, at the loader's"
                    " strength; on is an error where there is none.",
                ),
            ],
            outputs=[
                io.Noise.Output("clip_noise", display_name="noise"),
                io.Model.Output("mapped_model", display_name="model"),
            ],
        )

    @classmethod
    def execute(cls, model, strategy, share, seed, variance, mapping) -> io.NodeOutput:
        attached = model.get_attachment(KEY) or ()
        check_share(strategy, share)
        model = switch_mapping(model, mapping)
        noise = ClipNoise(seed, strategy, share, variance == "as printed", asked_frames(attached))
        return io.NodeOutput(noise, model)
