"""HARIVO's mapping network, which turns noise of independent frames into input that makes a clip."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .frame_attention import attention_over_frames, zero_init

LATENT, INSIDE, HEADS, HEAD_WIDTH = 4, 16, 8, 64


class MappingNetwork(nn.Module):
    """A convolution over frames and an attention over frames of the noisy latents, in front of the U-Net.

    c = x + b(x), y = c + P(MHSA(LN(c))), with the last convolution of b and P zero at the start; it knows no timestep.
    The paper's appendix prints a convolution of frames alone (`kernel` 1), its text one of pixels too (3).

    Shape: noisy latents `(clips * frames, 4, height, width)`; returns y - x, what is to be added to them.
    Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763), the pseudo-code of its appendix. As printed it doubles
    its input at the start; here it starts as the identity.
    """

    def __init__(self, kernel: int = 1, ops=nn):
        super().__init__()
        size, padding = (3, kernel, kernel), (1, kernel // 2, kernel // 2)
        self.widen = ops.Conv3d(LATENT, INSIDE, size, padding=padding)
        self.narrow = zero_init(ops.Conv3d(INSIDE, LATENT, size, padding=padding))
        self.norm = ops.LayerNorm(LATENT)
        self.qkv = ops.Linear(LATENT, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = ops.Linear(HEADS * HEAD_WIDTH, LATENT)
        self.proj = zero_init(ops.Linear(LATENT, LATENT))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        clips = rearrange(x, "(b f) c h w -> b c f h w", f=frames)
        branch = self.narrow(F.silu(self.widen(clips)))
        tokens = rearrange(clips + branch, "b c f h w -> (b h w) f c")
        attended = self.proj(self.out(attention_over_frames(self.qkv(self.norm(tokens)), HEADS)))
        h, w = x.shape[-2:]
        added = branch + rearrange(attended, "(b h w) f c -> b c f h w", h=h, w=w)
        return rearrange(added, "b c f h w -> (b f) c h w")


def pad_channels(added: Tensor, like: Tensor) -> Tensor:
    """Pad what is added to the latents, to be added to an input that has further channels behind them."""
    return F.pad(added, (0, 0, 0, 0, 0, like.shape[1] - added.shape[1]))
