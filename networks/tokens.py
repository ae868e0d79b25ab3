"""HARIVO's frame-wise tokens: a few text tokens for each frame, made from the prompt, beside the prompt's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .recurrent import Projections

PROMPT = 77
"""Tokens of a prompt that CLIP reads at once."""

MOST_LOGITS = 2**26
"""The most numbers of attention that are held at once."""


class FrameTokens(nn.Module):
    """A generator of `count` tokens for each of `frames` frames from a prompt of 77 tokens.

    A linear layer, a mixing of the 77 tokens into frames x count (the frame is the slower index), four linear layers,
    a SiLU after each and two after the first, as printed. For another number of frames what the mixing returns is
    interpolated along the frames, the first and the last staying in place.

    Source: HARIVO (Kwon et al. 2024, arXiv 2410.07763), the pseudo-code of its appendix.
    """

    def __init__(self, channels: int, frames: int, count: int, ops=nn):
        super().__init__()
        self.frames, self.count = frames, count
        self.first = ops.Linear(channels, channels)
        self.mix = ops.Linear(PROMPT, frames * count, bias=False)
        self.layers = nn.ModuleList(ops.Linear(channels, channels) for _ in range(4))

    def forward(self, text: Tensor, frames: int) -> Tensor:
        """Return tokens `(prompts * frames, count, channels)` for `(prompts, 77 or more, channels)`, of which 77 are
        read.

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


def tokens_by_row(generate: FrameTokens, text: Tensor, frames: int, prompts: Sequence[int]) -> Tensor:
    """Return each row's tokens `(clips * frames, count, channels)`: those of its frame, made from its own prompt.

    Args:
        text: a prompt for each row, `(clips * frames, tokens, channels)`.
        prompts: which rows have the same prompt, a number for each; the generator runs once for every number.
    """
    if list(prompts) == clip_prompts(len(text), frames):
        return generate(text[::frames], frames)  # a view, of which products round as they always did
    first = {prompt: row for row, prompt in reversed(list(enumerate(prompts)))}
    place = {prompt: k for k, prompt in enumerate(first)}
    made = generate(text[list(first.values())], frames)
    return made[[place[prompt] * frames + row % frames for row, prompt in enumerate(prompts)]]


def distinct_prompts(text: Tensor, frames: int) -> list[int]:
    """Number the prompts of rows `(clips * frames, tokens, channels)`, equal ones alike; see `clip_prompts` too."""
    clips = text.unflatten(0, (-1, frames))
    if torch.equal(clips, clips[:, :1].expand_as(clips)):
        return clip_prompts(len(text), frames)
    return torch.unique(text.flatten(1), dim=0, return_inverse=True)[1].tolist()


def clip_prompts(rows: int, frames: int) -> list[int]:
    """Number the prompts of rows where each clip has one, without a look at them."""
    return [row // frames for row in range(rows)]


NEUTRAL = 0.1
"""A weight at which tokens already have gradients that move them; at 0.001 they have hardly any."""


class TokenWeight(nn.Module):
    """θ = log g, the weight of a frame's tokens in one cross-attention beside those of the prompt.

    g = exp(θ) has a gradient wherever it is, as g = gamma² had not near 0. `neutral`: it starts at a tenth; else at 1,
    where tokens count like the prompt's, as in the paper.
    """

    def __init__(self, neutral: bool):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(math.log(NEUTRAL) if neutral else 0.0))

    def forward(self, like: Tensor) -> Tensor:
        return self.theta.to(like.device, torch.float32)


def added_by_tokens(project: Projections, normed: Tensor, text: Tensor, tokens: Tensor, log_weight: Tensor) -> Tensor:
    """Return what further tokens change in the output of a cross-attention, `(rows, pixels, channels)`.

    Attn(q, [text ; tokens]) - Attn(q, text), where the logits of the tokens have log g added. With Z the sum of
    exponentials over either, that is w (Attn(q, tokens) - Attn(q, text)) with w = g Z_tokens / (Z_text + g Z_tokens).

    Args:
        project: the frozen cross-attention.
        normed: its normalised input, `(rows, pixels, channels)`.
        text, tokens: what it attends to, `(rows, number, context)`.
        log_weight: log g, a number.
    """
    heads, pixels = project.heads, normed.shape[1]
    at_once = max(1, MOST_LOGITS // (heads * pixels * (text.shape[1] + tokens.shape[1])))
    parts = zip(*(rows.split(at_once) for rows in (normed, text, tokens)))
    change = torch.cat([_change(project, *part, log_weight) for part in parts])
    return project.to_out[0](change) - project.to_out[0](torch.zeros_like(change[:1, :1]))  # without its bias


def _change(project: Projections, normed: Tensor, text: Tensor, tokens: Tensor, log_weight: Tensor) -> Tensor:
    query = _split(project.to_q(normed), project.heads)
    of_text, text_sum = _attended(project, query, text)
    of_tokens, tokens_sum = _attended(project, query, tokens)
    share = torch.sigmoid(tokens_sum + log_weight - text_sum).to(of_text.dtype)
    return rearrange(share * (of_tokens - of_text), "b heads n d -> b n (heads d)")


def _attended(project: Projections, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention `(rows, heads, pixels, d)`, and the logarithm of its sum of exponentials, `(…, 1)`, float32."""
    key, value = (_split(to(context), project.heads) for to in (project.to_k, project.to_v))
    logits = (query * query.shape[-1] ** -0.5 @ key.mT).float()  # scaled before: float16 ends at 65504
    return logits.softmax(-1).to(value.dtype) @ value, logits.logsumexp(-1, keepdim=True)


def _split(tokens: Tensor, heads: int) -> Tensor:
    return rearrange(tokens, "b n (heads d) -> b heads n d", heads=heads)
