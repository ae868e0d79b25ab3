"""The text resampler of HiGen's released network: a prompt as a few tokens, before the cross-attentions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .frame_attention import FeedForward
from .tokens import clip_prompts


class TextAttention(nn.Module):
    """Attention of tokens to a text: what is added to them."""

    def __init__(self, channels: int, heads: int, ops=nn):
        super().__init__()
        self.heads = heads
        self.norm = ops.LayerNorm(channels)
        self.to_q = ops.Linear(channels, channels, bias=False)
        self.to_k = ops.Linear(channels, channels, bias=False)
        self.to_v = ops.Linear(channels, channels, bias=False)
        self.out = ops.Linear(channels, channels)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        projected = self.to_q(self.norm(tokens)), self.to_k(text), self.to_v(text)
        q, k, v = (rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads) for t in projected)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class ResamplerBlock(nn.Module):
    """Two attentions to the text and a feed-forward; tokens do not see each other."""

    def __init__(self, channels: int, heads: int, ops=nn):
        super().__init__()
        self.attentions = nn.ModuleList(TextAttention(channels, heads, ops) for _ in range(2))
        self.feed_forward = FeedForward(channels, ops)

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        for attention in self.attentions:
            tokens = tokens + attention(tokens, text)
        return tokens + self.feed_forward(tokens)


class TextResampler(nn.Module):
    """Learnt tokens that read a prompt of any length, the empty one too, and take its place.

    Shape: prompts `(prompts, tokens, context)` to `(prompts, count, context)`.
    Source: HiGen's released network (`context_embedding`); the paper does not mention it.

    Args:
        context: channels of a prompt.
        count, width: of the learnt tokens.
    """

    def __init__(self, context: int, count: int, width: int, layers: int, heads: int, ops=nn):
        super().__init__()
        self.tokens = nn.Parameter(width**-0.5 * torch.randn(1, count, width))
        self.input = ops.Linear(context, width)
        self.blocks = nn.ModuleList(ResamplerBlock(width, heads, ops) for _ in range(layers))
        self.output = ops.Linear(width, context)

    def forward(self, text: Tensor) -> Tensor:
        given = self.input(text)
        tokens = self.tokens.to(given).expand(len(text), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, given)
        return self.output(tokens)


def resampled_rows(resample: TextResampler, text: Tensor, frames: int, prompts: Sequence[int]) -> Tensor:
    """Return each row's prompt resampled, `(clips * frames, count, context)`, each distinct prompt once.

    Args:
        prompts: which rows have the same prompt, a number for each.
    """
    if list(prompts) == clip_prompts(len(text), frames):
        return resample(text[::frames]).repeat_interleave(frames, dim=0)
    first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    place = {prompt: k for k, prompt in enumerate(first)}
    return resample(text[list(first.values())])[[place[prompt] for prompt in prompts]]
