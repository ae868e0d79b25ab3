"""The convolution over the frames of a clip that temporal blocks and halved frame rates build on."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn


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
