"""The node that draws noise whose frames share a part, and switches mapping networks on and off."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ..samplers.noise import STRATEGIES, check_share, draw_noise, offset_noise
from .compat import io, schema, seed_input, where_known
from .node import Node
from .settings import KEY, asked_frames, with_mapping

MAPPING = ("from file", "on", "off")
log = logging.getLogger(KEY)


@dataclass(frozen=True)
class ClipNoise:
    """NOISE for a sampler, which hands it the latent to draw for."""

    seed: int
    strategy: str
    share: float
    printed: bool
    frames: int | None
    offset: float = 0.0

    def generate_noise(self, latent):
        """Draw noise like the samples, on the CPU; `batch_index` numbers frames, or clips where these have a time axis.

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
        noise = offset_noise(noise, self.offset, self.seed, latent.get("batch_index"))
        return noise.to(samples.dtype)


def mapping_mode(value) -> str:
    """Return the one of `MAPPING` that a graph asks for; older ones hold a boolean: on or off."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def switch_mapping(model, mode: str):
    """Return MODEL with its mapping networks running ("from file", "on") or not ("off").

    Raises:
        ValueError: the mode is "on", and no motion file of MODEL has one.
    """
    files = [s.motion for s in model.get_attachment(KEY) or () if s.motion.info.config.mapping]
    if mode == "on" and not files:
        raise ValueError(
            "Mapping is on, and no motion file of this model has a mapping network: set mapping to 'from file', or put"
            " the STUNet Loader with a file that has one before this node."
        )
    if mode == "off" and files:
        log.warning("Mapping-Network Noise: mapping is off, the network of %s does not run.", files[0].path.name)
    return with_mapping(model, mode != "off")


def strategy_tooltip() -> str:
    """Return what each strategy does, a line each."""
    return "\n".join(f"{name}: {strategy.summary}." for name, strategy in STRATEGIES.items())


def share_tooltip() -> str:
    """Return the shares that each strategy takes, a line each, with the correlation that they make."""
    lines = ["How much frames have in common, no unit; 0: nothing. By strategy, correlation of neighbouring frames:"]
    for name, strategy in STRATEGIES.items():
        half, one = (strategy.correlation(share, 1) for share in (0.5, 1.0))
        lines.append(f"{name}, {strategy.allowed}: {half:.2f} at 0.5, {one:.2f} at 1.")
    return "\n".join(lines)


def variance_tooltip() -> str:
    """Return what the two variances are, with the strategies that they differ for."""
    weak = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.as_printed)
    return (
        "preserved: every frame has variance 1, as the model expects. as printed: the paper's formula, variance not"
        f" normalised; it makes {weak} noise too weak and images blurry."
    )


class MappingNetworkNoise(Node):
    """Draws noise that frames share, and switches the mapping networks of the model."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMappingNetworkNoise",
            display_name="Mapping-Network Noise",
            category="stillmotion/noise",
            description="Noise of which the frames of a clip share a part, so that they differ less; and a file's"
            " mapping network, on or off.",
            search="freenoise, shared noise, mixed noise, correlated noise, consistent noise, noise type, pyoco,"
            " harivo, random noise",
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler gets: it says how long a clip is."),
                io.Combo.Input("strategy", options=list(STRATEGIES), tooltip=strategy_tooltip()),
                io.Float.Input("share", default=0.2, min=0.0, max=10.0, step=0.05, tooltip=share_tooltip()),
                seed_input("The same seed is the same noise, and for iid that of RandomNoise."),
                io.Combo.Input("variance", options=["preserved", "as printed"], tooltip=variance_tooltip()),
                io.Combo.Input(
                    "mapping",
                    options=list(MAPPING),
                    default="from file",
                    tooltip="The mapping network in the returned model. from file: it runs where the motion file has"
                    " one, at the loader's strength. on: the same, and an error where none has one. off: it does not"
                    " run.",
                ),
                where_known(
                    io.Float.Input,
                    "offset",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much lighter or darker frames start as a whole: one more normal number for each"
                    " channel of each frame. 0.1 for HiGen's release, and for files trained with it; else 0.",
                ),
            ],
            outputs=[
                io.Noise.Output("clip_noise", display_name="noise"),
                io.Model.Output("mapped_model", display_name="model"),
            ],
        )

    @classmethod
    def validate_inputs(cls, mapping=None):
        """Let the booleans of older graphs pass, which the host refuses as no option; None: the input is linked."""
        known = mapping is None or isinstance(mapping, bool) or mapping in MAPPING
        return known or f"{mapping!r} is none of {', '.join(MAPPING)}"

    @classmethod
    def execute(cls, model, strategy, share, seed, variance, mapping, offset=0.0) -> io.NodeOutput:
        attached = model.get_attachment(KEY) or ()
        check_share(strategy, share)
        model = switch_mapping(model, mapping_mode(mapping))
        noise = ClipNoise(seed, strategy, share, variance == "as printed", asked_frames(attached), offset)
        return io.NodeOutput(noise, model)
