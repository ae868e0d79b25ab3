"""HiGen's spatial prior: the latents of a still, through a second stem beside the U-Net's first convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .asked import Absent, Given, over, taken
from .frame_attention import zero_init

LATENT = 4


class PriorStem(nn.Module):
    """ConvStem_t of u = ConvStem_s(z_t) + repeat(ConvStem_t(z_s)), a convolution like the U-Net's first, zero at the
    start.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), section 3.2, and its released network (`img_embedding`).

    Args:
        channels: of the U-Net's finest level.
        absent: "nothing": a clip without a prior, or of one frame, is left alone; "zero": it gets the bias.
    """

    def __init__(self, channels: int, absent: Absent, ops=nn):
        super().__init__()
        self.absent: Absent = absent
        self.conv = zero_init(ops.Conv2d(LATENT, channels, 3, padding=1))

    def forward(self, x: Tensor, prior: Given | None, frames: int, whole: int) -> Tensor | None:
        """Return what is added to activations `(clips * frames, channels, height, width)`, or None.

        Args:
            whole: frames of the whole clips, of which `x` may be a window.

        Raises:
            ValueError: the prior's latents have another size.
        """
        given = taken(prior, whole, self.absent, 0.0, (1, LATENT, *x.shape[-2:]))
        if given is None:
            return None
        (height, width), own = given.value.shape[-2:], x.shape[-2:]
        if (height, width) != tuple(own):
            raise ValueError(
                f"The spatial prior is a latent of {width} x {height} cells ({8 * width} x {8 * height} pixels), and"
                f" what is sampled has {own[1]} x {own[0]} ({8 * own[1]} x {8 * own[0]}); make both the same size."
            )
        added = self.conv(given.value.to(x.device, x.dtype))
        if self.absent == "nothing" and given.weight is not None:
            added = added * over(given.weight, added)
        return for_frames(added[:, None].expand(-1, frames, -1, -1, -1), len(x))


def for_frames(per_clip: Tensor, rows: int) -> Tensor:
    """Return `(clips or 1, frames, …)` as rows of a batch, one clip for all where there is one."""
    clips = rows // per_clip.shape[1]
    return torch.broadcast_to(per_clip, (clips, *per_clip.shape[1:])).flatten(0, 1)
