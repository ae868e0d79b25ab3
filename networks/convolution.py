"""Convolutions over the frames of a clip: the layer that the others build on, and HiGen's block of four."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .temporal import NormScope, normed, zero_init


class FrameConvolution(nn.Module):
    """A convolution of three frames for every pixel on its own; a `stride` of 2 keeps frames 0, 2, 4, ….

    Shape: activations `(clips * frames, channels, height, width)` in and out. Beyond either end of a clip is zero.
    """

    def __init__(self, channels: int, stride: int = 1, ops=nn):
        super().__init__()
        # over (frames, pixels) of clips as two-dimensional pictures: the layout in which every host is fast
        self.conv = ops.Conv2d(channels, channels, (3, 1), stride=(stride, 1), padding=(1, 0))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h, w = x.shape[-2:]
        y = self.conv(rearrange(x, "(b f) c h w -> b c f (h w)", f=frames))
        return rearrange(y, "b c f (h w) -> (b f) c h w", h=h, w=w)


class TemporalConvolution(nn.Module):
    """HiGen's TConv: four times norm, SiLU and a convolution over frames, the last one zero at the start.

    A clip of one frame gets nothing: it is an image.

    Shape: activations `(clips * frames, channels, height, width)`; returns what is to be added to them.
    Source: HiGen (Qing et al. 2023), section 3.1, and its released network.
    """

    def __init__(self, channels: int, norm_scope: NormScope, ops=nn):
        super().__init__()
        self.norm_scope = norm_scope
        self.norms = nn.ModuleList(ops.GroupNorm(32, channels) for _ in range(4))
        self.convolutions = nn.ModuleList(FrameConvolution(channels, ops=ops) for _ in range(4))
        zero_init(self.convolutions[-1])

    def forward(self, x: Tensor, frames: int) -> Tensor | None:
        if frames == 1:
            return None
        for norm, convolution in zip(self.norms, self.convolutions):
            x = convolution(F.silu(normed(norm, x, frames, self.norm_scope)), frames)
        return x
