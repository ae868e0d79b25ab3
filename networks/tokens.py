"""HARIVO's frame-wise tokens: a few text tokens for each frame, made from the prompt, beside the prompt's own."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Projections

PROMPT = 77
"""Tokens of a prompt that CLIP reads at once."""

MOST_LOGITS = 2**26
"""So many numbers of attention at most are held at once."""


class FrameTokens(nn.Module):
    """Makes `count` tokens for each of `frames` frames from a prompt of 77 tokens.

    A linear layer, a mixing of the 77 tokens into frames x count (the frame is the slower index), four linear layers,
    a SiLU after each and two after the first, as printed. For another number of frames what the mixing returns is
    interpolated along the frames, the first and the last staying in place.

    Source: HARIVO (Kwon et al. 2024), section 3.3 and its appendix's pseudo-code.
    """

    def __init__(self, channels: int, frames: int, count: int, ops=nn):
        super().__init__()
        self.frames, self.count = frames, count
        self.first = ops.Linear(channels, channels)
        self.mix = ops.Linear(PROMPT, frames * count, bias=False)
        self.layers = nn.ModuleList(ops.Linear(channels, channels) for _ in range(4))

    def forward(self, text: Tensor, frames: int) -> Tensor:
        """Tokens `(clips * frames, count, channels)` for prompts `(clips, 77 or more, channels)`, of which 77 are read.

        Raises:
            ValueError: the prompt is shorter.
        """
        if text.shape[1] < PROMPT:
            raise ValueError(f"Frame-wise tokens need a prompt of {PROMPT} tokens; this one has {text.shape[1]}.")
        y = F.silu(F.silu(self.first(text[:, :PROMPT])))
        y = rearrange(self.mix(y.mT), "b c (f k) -> b (k c) f", f=self.frames)
        if frames != self.frames:
            y = F.interpolate(y, frames, mode="linear", align_corners=True)
        y = F.silu(rearrange(y, "b (k c) f -> (b f) k c", k=self.count))
        for layer in self.layers:
            y = F.silu(layer(y))
        return y


class TokenWeight(nn.Module):
    """g = gamma²: how much the tokens of a frame count in one cross-attention beside those of the prompt.

    `neutral`: it starts at 0.001, where they hardly do; else at 1, where they count like the prompt's, as in the paper.
    """

    def __init__(self, neutral: bool):
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor(0.001**0.5 if neutral else 1.0))

    def forward(self, like: Tensor) -> Tensor:
        return self.gamma.to(like.device, torch.float32).square()


def added_by_tokens(project: Projections, normed: Tensor, text: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    """What further tokens change in the output of a cross-attention, `(rows, pixels, channels)`.

    Attn(q, [text ; tokens]) - Attn(q, text), where the logits of the tokens have log `weight` added. With Z the sum of
    exponentials over either, that is w (Attn(q, tokens) - Attn(q, text)) with w = g Z_tokens / (Z_text + g Z_tokens).

    Args:
        project: the frozen cross-attention.
        normed: its normalised input, `(rows, pixels, channels)`.
        text, tokens: what it attends to, `(rows, number, context)`.
        weight: g, a number from 0.
    """
    heads, pixels = project.heads, normed.shape[1]
    at_once = max(1, MOST_LOGITS // (heads * pixels * (text.shape[1] + tokens.shape[1])))
    parts = zip(*(rows.split(at_once) for rows in (normed, text, tokens)))
    change = torch.cat([_change(project, *part, weight) for part in parts])
    return project.to_out[0](change) - project.to_out[0](torch.zeros_like(change[:1, :1]))  # without its bias


def _change(project: Projections, normed: Tensor, text: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    query = _split(project.to_q(normed), project.heads)
    of_text, text_sum = _attended(project, query, text)
    of_tokens, tokens_sum = _attended(project, query, tokens)
    log_weight = weight.clamp(min=torch.finfo(weight.dtype).tiny).log()  # log 0 has no gradient but NaN
    share = torch.sigmoid(tokens_sum + log_weight - text_sum).to(of_text.dtype)
    return rearrange(share * (of_tokens - of_text), "b heads n d -> b n (heads d)")


def _attended(project: Projections, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Attention `(rows, heads, pixels, d)`, and the logarithm of its sum of exponentials, `(…, 1)`, float32."""
    key, value = (_split(to(context), project.heads) for to in (project.to_k, project.to_v))
    logits = (query * query.shape[-1] ** -0.5 @ key.mT).float()  # scaled before: float16 ends at 65504
    return logits.softmax(-1).to(value.dtype) @ value, logits.logsumexp(-1, keepdim=True)


def _split(tokens: Tensor, heads: int) -> Tensor:
    return rearrange(tokens, "b n (heads d) -> b heads n d", heads=heads)
