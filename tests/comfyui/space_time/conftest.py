"""A small model of four levels, and motion files for it."""

import pytest
import torch
from space_time_clips import WIDTHS
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.presets import PRESETS


@pytest.fixture
def model(small_model):
    return small_model(widths=WIDTHS)


@pytest.fixture
def motion(tmp_path, model):
    """Writes a motion file for the model, as if trained, and returns its path; or one fresh from its config."""
    from stillmotion.nodes.attach import structure_of

    def write(config, name="motion", fresh=False):
        structure = structure_of(model)
        config = PRESETS[config](structure, 80) if isinstance(config, str) else config
        torch.manual_seed(0)
        inflation = Inflation(config, structure)
        for parameter_name, parameter in inflation.named_parameters() if not fresh else ():
            deep = parameter_name.startswith("text.")  # six layers in a row, which would blow up what goes through
            torch.nn.init.normal_(parameter, mean=0.5 * ("gamma" in parameter_name), std=0.05 if deep else 0.1)
        path = tmp_path / f"{name}.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=8))
        return path

    return write
