"""KSampler with mitigating gradients, as one node."""

from __future__ import annotations

import comfy.samplers

from .compat import io, schema, seed_input
from .guide import Guidance, MitigatingGuider, guidance_inputs
from .node import Node


class MGGuidanceSampler(Node):
    """Node that samples as KSampler does, with the MG Guider."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMGGuidanceSampler",
            display_name="MG Guidance Sampler",
            category="stillmotion/sampling",
            description="KSampler that pulls the frames of a clip together against flicker.",
            search="flicker, deflicker, anti flicker, temporal consistency, video sampler, smooth video, harivo",
            inputs=[
                io.Model.Input("model", tooltip="Any image model, whose frames are the batch, or video model."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent_image", tooltip="Latents of the clip, empty or not; frames are the batch."),
                seed_input("Seed of the noise. Not used where `noise` is connected."),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="Steps of the sampler. Paper: 25."),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler. Paper: ddim."
                ),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="As in KSampler. Below 1 the clip in the latents is edited: 0.4 to 0.8 keeps its motion.",
                ),
                *guidance_inputs(),
                io.Noise.Input("noise", optional=True, tooltip="Noise to start from, in place of that of `seed`."),
            ],
            outputs=[io.Latent.Output("latent")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        sampler_name,
        scheduler,
        denoise,
        noise=None,
        **guidance,
    ) -> io.NodeOutput:
        # here and not above: it is a second copy of a module of the host, and ComfyUI's start need not wait for it
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

        guider = MitigatingGuider(model, positive, negative, Guidance(**guidance))
        # the host's own rules for denoise and for samplers that leave out a step
        plan = comfy.samplers.KSampler(model, steps, model.load_device, sampler_name, scheduler, denoise)
        latent, _ = SamplerCustomAdvanced.execute(
            noise=noise or Noise_RandomNoise(seed),
            guider=guider,
            sampler=comfy.samplers.sampler_object(sampler_name),
            sigmas=plan.sigmas,
            latent_image=latent_image,
        ).result
        return io.NodeOutput(latent)
