"""A network that is called as the TorchScript I3D of FVD is, with random weights."""

import torch
from torch import Tensor, nn


class TinyI3d(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Linear(3 * 4 * 2 * 2, width)

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert x.shape[1] == 3
        if rescale:
            x = x / 127.5 - 1
        features = self.head(nn.functional.adaptive_avg_pool3d(x, (4, 2, 2)).flatten(1))
        return features if return_features else features.softmax(-1)


def write(path, width=400):
    torch.manual_seed(0)
    network = TinyI3d(width).eval().requires_grad_(False)
    torch.jit.script(network).save(path)
    return network
