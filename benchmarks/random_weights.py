"""Models of random weights: what is timed needs no trained ones."""

import torch


def randomise(module):
    """Fill a module with random weights that keep activations finite, without gradients."""
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.02)
    return module.requires_grad_(False)
