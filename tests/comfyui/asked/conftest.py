"""MODELs with motion files that can be asked."""

import pytest
import torch
from asked_clips import FRAMES
from stillmotion.networks.config import CrossFrames, InflationConfig
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file


@pytest.fixture
def video(small_model, tmp_path):
    """A MODEL with motion files of these configs on it, as if trained."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    base = small_model()

    def make(*configs, frames_per_clip=0, model=base):
        structure = structure_of(model)
        for i, config in enumerate(configs):
            inflation, path = Inflation(config, structure), tmp_path / f"motion{i}.safetensors"
            for name, parameter in inflation.named_parameters():
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name) + i))
            write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=FRAMES))
            strengths = {"temporal": 1.0, "recurrence": 1.0, "queries": 1.0}
            model = attach(model, load_motion(path), **strengths, frames_per_clip=frames_per_clip)
        return model

    return make


@pytest.fixture
def of_first_frame(small_model, tmp_path):
    """A MODEL with a few-shot file that was trained with its first frame clean, or noisy."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    def make(kind="clean"):
        model, path = small_model(), tmp_path / f"{kind}.safetensors"
        structure, config = structure_of(model), InflationConfig(frame_attention=CrossFrames())
        inflation = Inflation(config, structure)
        for name, parameter in inflation.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
        info = MotionInfo(config, structure, frames=FRAMES, options={"first_frame": kind})
        write_motion_file(path, inflation.state_dict(), info)
        return attach(model, load_motion(path), temporal=1.0, recurrence=1.0, queries=1.0)

    return make
