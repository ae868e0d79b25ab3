"""Guidance over time: a CFG scale that changes during sampling, and mitigating gradients."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import comfy.model_sampling
import comfy.samplers
import comfy.utils
from torch import Tensor

from ..samplers.mitigating_gradient import Mitigation, mitigate_latents
from ..samplers.schedules import cfg_at, flow_to_sigma, is_within
from .compat import io, schema
from .node import Node
from .previews import with_previews
from .settings import KEY, asked_frames, check_rank

UNLIMITED = 10.0
"""The `max_pull` that stands for no limit: a widget cannot hold infinity."""
log = logging.getLogger(KEY)


@dataclass(frozen=True)
class Guidance:
    """Values of `guidance_inputs`, by their names."""

    cfg_early: float
    cfg_late: float
    cfg_switch: float
    alpha: float
    max_pull: float
    mode: str
    resolution_independent: bool
    start_percent: float
    end_percent: float

    def mitigation(self) -> Mitigation:
        return Mitigation(
            alpha=-self.alpha if self.mode == "motion boost" else self.alpha,
            max_pull=self.max_pull if self.max_pull < UNLIMITED else math.inf,
            symmetric=self.mode != "one-sided",
            ref_dim=4096 if self.resolution_independent else None,
        )


class MitigatingGuider(comfy.samplers.CFGGuider):
    """The host's CFGGuider with a scale that changes once, and mitigating gradients on what it predicts.

    Everything else, the hooks of other packs included, is the host's: with alpha 0 and one scale nothing differs.
    """

    def __init__(self, model, positive, negative, guidance: Guidance):
        super().__init__(with_previews(model.clone()))
        self.set_conds(positive, negative)
        self.set_cfg(guidance.cfg_early)
        self.guidance, self.mitigation = guidance, guidance.mitigation()
        self.frames = asked_frames(model.get_attachment(KEY) or ())
        self.sampling = model.get_model_object("model_sampling")
        percents = guidance.cfg_switch, guidance.start_percent, guidance.end_percent
        self.switch, self.start, self.end = (level_at(self.sampling, percent) for percent in percents)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        parts = latent_image.unbind() if latent_image.is_nested else [latent_image]
        self.shapes = [tuple(part.shape) for part in parts]
        check_rank(self.model_patcher, self.shapes[0])
        check_latents(self.shapes, denoise_mask, self.frames)
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def predict_noise(self, x, timestep, *args, **kwargs):
        """Return x0 after guidance; the host's method is named so."""
        level = timestep.flatten()[0].item()  # in the model's own measure, as `percent_to_sigma` gives it
        self.set_cfg(cfg_at(level, self.guidance.cfg_early, self.guidance.cfg_late, self.switch))
        denoised = super().predict_noise(x, timestep, *args, **kwargs)
        if self.guidance.alpha == 0 or not is_within(level, self.start, self.end):
            return denoised
        return self._mitigate(denoised, noise_over_signal(self.sampling, level))

    def _mitigate(self, denoised: Tensor, sigma: float) -> Tensor:
        if len(self.shapes) == 1:
            return mitigate_latents(denoised, sigma, self.mitigation, self.frames)
        parts = comfy.utils.unpack_latents(denoised, self.shapes)  # the host lays video and sound in one row
        parts = [mitigate_latents(part, sigma, self.mitigation) if part.ndim == 5 else part for part in parts]
        return comfy.utils.pack_latents(parts)[0]


def check_latents(shapes: list[tuple[int, ...]], mask: Tensor | None, frames: int | None) -> None:
    """Raise ValueError for latents without frames, and for noise masks that are neither one nor one per frame."""
    videos = [shape for shape in shapes if len(shape) == 5]
    if not videos and (len(shapes) > 1 or len(shapes[0]) != 4):
        raise ValueError(
            f"MG guidance compares frames, and latents of shape {', '.join(map(str, shapes))} have none; it takes"
            " images (frames, channels, height, width) and videos (clips, channels, frames, height, width)."
        )
    rows = shapes[0][0]
    if (frames := videos[0][2] if videos else frames or rows) < 3:
        log.warning("MG guidance does nothing for clips of %d frames: it needs three or more.", frames)
    if mask is not None and not videos and ((masks := math.prod(mask.shape[:-2])) == 0 or rows % masks):
        raise ValueError(f"The latent has {rows} frames and {masks} noise masks; give one mask, or one per frame.")


def level_at(sampling, percent: float) -> float:
    """Return the noise level where a share of the schedule has passed; inf, before all of it, where the share is 0.

    Flows begin at the level that the host gives for a share of 0, so that an end there would leave them a step.
    """
    return sampling.percent_to_sigma(percent) if percent > 0 else math.inf


def noise_over_signal(sampling, level: float) -> float:
    """Return σ/signal at a noise level of the model; the levels of flow models are times from 0 to 1.

    The pull scales with (σ/signal)², so that flow and diffusion models match.
    """
    if isinstance(sampling, comfy.model_sampling.CONST):
        return flow_to_sigma(level, getattr(sampling, "noise_scale", 1.0))
    return level


def guidance_inputs() -> list:
    """Return the inputs that the guider and the sampler share."""

    def percent(name, default, tooltip):
        return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

    def cfg(name, default, tooltip):
        return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)

    return [
        cfg("cfg_early", 12.0, "CFG scale until cfg_switch. Paper: 10 to 15."),
        cfg("cfg_late", 7.5, "CFG scale from cfg_switch on. Paper: 7.5."),
        percent("cfg_switch", 0.3, "Share of the noise schedule after which cfg_late takes over. Paper: 0.3."),
        io.Float.Input(
            "alpha",
            default=40.0,
            min=0.0,
            max=200.0,
            step=1.0,
            tooltip="How strongly neighbouring frames are pulled together, no unit. 0: off. Paper: 40, and 150 is too"
            " smooth.",
        ),
        io.Float.Input(
            "max_pull",
            default=0.5,
            min=0.0,
            max=UNLIMITED,
            step=0.05,
            tooltip="Largest share of the difference of two frames that one step takes away. Paper: no limit, which is"
            f" what {UNLIMITED:g} means here; it overshoots where frames are alike.",
        ),
        io.Combo.Input(
            "mode",
            options=["one-sided", "symmetric", "motion boost"],
            tooltip="one-sided: the later frame moves, as in the paper. symmetric: both move half of the way."
            " motion boost: both move apart, flicker included.",
        ),
        io.Boolean.Input(
            "resolution_independent",
            default=True,
            tooltip="On: alpha means the same at every size (as at 256 x 256 pixels). Off: as in the paper, weaker at"
            " larger sizes.",
        ),
        percent("start_percent", 0.0, "Share of the noise schedule after which frames are pulled together."),
        percent("end_percent", 1.0, "Share of the noise schedule until which frames are pulled together."),
    ]


class MGGuider(Node):
    """Node of the guider, for the host's SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMGGuider",
            display_name="MG Guider",
            category="stillmotion/sampling",
            description="Guider for SamplerCustomAdvanced that pulls the frames of a clip together against flicker.",
            search="flicker, deflicker, anti flicker, temporal consistency, cfg guider, smooth video, harivo",
            inputs=[
                io.Model.Input("model", tooltip="Any image model, whose frames are the batch, or video model."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output("guider")],
        )

    @classmethod
    def execute(cls, model, positive, negative, **guidance) -> io.NodeOutput:
        return io.NodeOutput(MitigatingGuider(model, positive, negative, Guidance(**guidance)))
