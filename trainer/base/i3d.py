"""I3D, the network of the Fréchet Video Distance, from the TorchScript file that is in use for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tensors import one_sentence

SIDE, FRAMES, WIDTH = 224, 16, 400
"""Pixels on a side and frames of what it sees, and how many features it has."""


@dataclass(frozen=True)
class I3d:
    """A frozen I3D that was trained on Kinetics-400."""

    model: nn.Module

    @torch.no_grad()
    def of_clip(self, frames: Tensor) -> Tensor:
        """Return what it sees in a clip, (1, 400) in float32, before the softmax over actions.

        Args:
            frames: (16, 3, height, width) in [-1, 1], squeezed into 224 x 224 pixels, as FVD does it.
        """
        pixels = F.interpolate(frames.to(device_of(self.model)), (SIDE, SIDE), mode="bilinear", align_corners=False)
        clip = pixels.transpose(0, 1)[None]
        return self.model(clip, rescale=False, resize=False, return_features=True).float().cpu()


def device_of(model: nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def load_i3d(path: Path) -> I3d:
    """Return the I3D in a file; nothing is downloaded.

    TorchScript is a program with its weights: what is in the file runs.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no TorchScript, or no I3D.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--fvd {path}: there is no such file; it takes i3d_torchscript.pt, I3D as TorchScript")
    with one_sentence(f"--fvd {path} cannot be used; it takes i3d_torchscript.pt, I3D as TorchScript"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = I3d(torch.jit.load(path, map_location=device).eval())
        shape = network.of_clip(torch.zeros(FRAMES, 3, SIDE, SIDE)).shape
        if shape != (1, WIDTH):
            raise ValueError(f"of one clip it makes {tuple(shape)} numbers, and I3D makes {(1, WIDTH)}")
    return network
