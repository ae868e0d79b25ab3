"""Networks and a motion file that are sampled on windows."""

import pytest
import torch


@pytest.fixture
def motion(tmp_path):
    """Attaches a random motion file to a MODEL."""
    from stillmotion.networks.config import CrossFrames, InflationConfig, Recurrence, Temporal
    from stillmotion.networks.inflation import Inflation
    from stillmotion.networks.motion_file import MotionInfo, write_motion_file
    from stillmotion.nodes import attach
    from stillmotion.nodes.motion import load_motion

    def attached(model, frames_per_clip=0, **parts):
        structure = attach.structure_of(model)
        config = InflationConfig(Temporal(), CrossFrames(), Recurrence(), **parts)
        torch.manual_seed(0)
        inflation = Inflation(config, structure)
        for name, parameter in inflation.named_parameters():
            torch.nn.init.normal_(parameter, mean=0.5 * ("gamma" in name), std=0.1)
        path = tmp_path / "motion.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=4))
        strengths = {"temporal": 1.0, "recurrence": 1.0, "queries": 1.0}
        return attach.attach(model, load_motion(path), **strengths, frames_per_clip=frames_per_clip)

    return attached


class FrameByFrame(torch.nn.Module):
    """A network in which no frame, image or video, depends on another, nor its rounding on how many there are."""

    dtype = torch.float32

    def __init__(self, **ignored):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.7))
        self.seen = []

    def forward(self, x, timesteps, context=None, y=None, control=None, transformer_options={}, **extra):  # noqa: B006
        from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self.plain_forward, self, wrappers)
        return executor.execute(x, timesteps, context, y, control, transformer_options, **extra)

    def plain_forward(self, x, timesteps, context, y, control, transformer_options):
        self.seen.append(transformer_options)
        rows = [len(x)] + [1] * (x.ndim - 1)
        out = torch.sin(self.gain * x[:, :4]) * (timesteps / 1000).view(rows) + context[:, 0, 0].view(rows)
        for channel in x[:, 4:].unbind(1):
            out = out + 0.3 * channel.unsqueeze(1)
        for hint in (control or {}).get("middle", []):
            out = out + hint
        return out


@pytest.fixture
def model():
    """A MODEL of that network; `model.seen` is what each forward was told."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({"dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, "cpu", FrameByFrame)
    model = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
    model.seen = base.diffusion_model.seen
    return model


class Hinted(torch.nn.Module):
    """What a ControlNet runs; here a pixel of the hint for each of the latent."""

    dtype = torch.float32

    def forward(self, x, hint, timesteps, context):
        return {"input": [], "output": [], "middle": [0.5 * hint.sum(1, keepdim=True)[:, :, ::8, ::8] + 0.1 * x]}


@pytest.fixture
def control(comfyui):
    """Makes a ControlNet with hints, as the apply node of the host does."""
    import comfy.controlnet

    def make(hint, previous=None, masks=()):
        net = comfy.controlnet.ControlNet(Hinted(), load_device=torch.device("cpu"))
        return net.set_cond_hint(hint.movedim(-1, 1), extra_concat=[*masks]).set_previous_controlnet(previous)

    return make
