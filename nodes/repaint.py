"""The sampler that takes its steps several times, for clips of which pixels are given."""

from __future__ import annotations

from .compat import io, schema
from .node import Node


class RePaintSampler(Node):
    """Node for RePaint's resampling, as a SAMPLER of the host's custom sampling."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionRePaintSampler",
            display_name="RePaint Sampler",
            category="stillmotion/sampling",
            description="Takes every step several times, so that inpainting by a noise mask alone fits what is given.",
            search="resample, resampling steps, inpaint sampler, time travel, harmonise, seamless",
            inputs=[
                io.Int.Input(
                    "times",
                    default=4,
                    min=1,
                    max=50,
                    tooltip="How often every step is taken; sampling takes as many times as long. 1: Euler. Paper: 10.",
                ),
            ],
            outputs=[io.Sampler.Output("sampler")],
        )

    @classmethod
    def execute(cls, times) -> io.NodeOutput:
        import comfy.samplers

        return io.NodeOutput(comfy.samplers.KSAMPLER(sample, {"times": times}))


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, times=1):
    """Sample as the host's samplers do; the same seed is the same noise."""
    from comfy.k_diffusion.sampling import default_noise_sampler
    from comfy.model_sampling import CONST

    from ..samplers.repaint import repainted

    others = extra_args or {}
    draw = default_noise_sampler(x, seed=others.get("seed"))
    rows = x.new_ones(len(x))
    flow = isinstance(model.inner_model.inner_model.model_sampling, CONST)

    def after(step, latents, sigma, clean):
        if callback:
            callback({"x": latents, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})

    return repainted(
        lambda latents, sigma: model(latents, sigma * rows, **others),
        x,
        sigmas,
        times,
        lambda: draw(sigmas[0], sigmas[1]),
        (lambda sigma: 1 - sigma) if flow else (lambda sigma: 1.0),
        after,
    )
