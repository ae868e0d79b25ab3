"""Recurrent motion prediction: every frame attends to the first frame and to a memory of the frames before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

RecurrenceMode = Literal["gated_scan", "paper_rnn"]

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Attention of `(batch, tokens, channels)` queries, keys, values in so many heads; the host brings its own."""


class Projections(Protocol):
    """The frozen self-attention of a host: diffusers' `Attention` and ComfyUI's `CrossAttention` both fit."""

    heads: int
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList | nn.Sequential


def scan_sequential(decay: Tensor, update: Tensor) -> Tensor:
    """Compute h_i = decay_i * h_{i-1} + update_i with h_0 = 0 along dimension 1, one step after the other."""
    states = [update[:, 0]]
    for a, u in zip(decay.unbind(1)[1:], update.unbind(1)[1:]):
        states.append(a * states[-1] + u)
    return torch.stack(states, dim=1)


def scan_parallel(decay: Tensor, update: Tensor) -> Tensor:
    """Compute the same as `scan_sequential` in ceil(log2(length)) steps.

    Pairs combine as (a, u) then (a', u') -> (a a', a' u + u') (an inclusive scan, Hillis and Steele 1986).
    """
    reach = 1
    while reach < decay.shape[1]:
        update = torch.cat([update[:, :reach], decay[:, reach:] * update[:, :-reach] + update[:, reach:]], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return update


def scan(decay: Tensor, update: Tensor) -> Tensor:
    """Scan in parallel on a GPU, where launching kernels is what costs, and step by step on a CPU, where work is."""
    return scan_sequential(decay, update) if decay.device.type == "cpu" else scan_parallel(decay, update)


class MixGate(nn.Module):
    """tanh(gamma), one number, 0 at the start, which is the frozen model exactly.

    It does not stick there: what it multiplies is not zero, so that gamma has a gradient from the first step, and
    the recurrence behind it from the second. Of a product exactly one factor may start at zero.
    """

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, like: Tensor) -> Tensor:
        return torch.tanh(self.gamma.to(like.device)).to(like.dtype)


class GatedScan(nn.Module):
    """The memory that each frame finds: a gated mean over the frames before it.

    a_i = sigmoid(W_a z_i + b_a), u_i = (1 - a_i) * W_z z_i, h_i = a_i * h_{i-1} + u_i, m_i = tanh(W_o h_i + b_o),
    with z_i the frame before frame i. The gates see inputs only, so that all frames can be computed at once.
    Source: Few-Shot Video Generation with Recurrent Motion Prediction, section 3.1, with the recurrence made
    diagonal and input-gated.
    """

    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.gate = ops.Linear(channels, channels)
        self.write = ops.Linear(channels, channels, bias=False)
        self.read = ops.Linear(channels, channels)
        if self.gate.bias is not None:  # ComfyUI's layers may have no weights before a file is loaded into them
            nn.init.constant_(self.gate.bias, math.log(0.9 / 0.1))  # keeps 0.9 of the memory per frame at the start

    def forward(self, previous: Tensor) -> Tensor:
        wide = torch.promote_types(previous.dtype, torch.float32)  # a mean over many frames needs the digits
        decay = torch.sigmoid(self.gate(previous).to(wide))
        memory = scan(decay, (1 - decay) * self.write(previous).to(wide))
        return torch.tanh(self.read(memory.to(previous.dtype)))


class PaperRNN(nn.Module):
    """The memory as printed: h_i = tanh(W_hh h_{i-1} + W_zh z_i + b_h), m_i = tanh(W_ho h_i + b_a).

    Source: Few-Shot Video Generation with Recurrent Motion Prediction, section 3.1, with f = g = tanh.
    """

    def __init__(self, channels: int, ops=nn):
        super().__init__()
        self.carry = ops.Linear(channels, channels, bias=False)
        self.write = ops.Linear(channels, channels)
        self.read = ops.Linear(channels, channels)

    def forward(self, previous: Tensor) -> Tensor:
        written = self.write(previous)
        states = [torch.tanh(written[:, 0])]
        for step in written.unbind(1)[1:]:
            states.append(torch.tanh(self.carry(states[-1]) + step))
        return torch.tanh(self.read(torch.stack(states, dim=1)))


class RecurrentAttention(nn.Module):
    """The recurrence on a frozen self-attention: adds tanh(gamma) * (R_i - S_i), nothing on the first frame.

    S_i is the plain self-attention of frame i, R_i its attention to [X_1 ; m_i]: the first frame's tokens and the
    memory of frames 1 … i-1, through the frozen projections. gamma = 0 is the frozen model; a large gamma is the
    paper's layer.

    Source: Few-Shot Video Generation with Recurrent Motion Prediction, section 3.1.
    """

    def __init__(self, channels: int, mode: RecurrenceMode, ops=nn):
        super().__init__()
        self.cell = {"gated_scan": GatedScan, "paper_rnn": PaperRNN}[mode](channels, ops)
        self.mix = MixGate()

    def forward(self, tokens: Tensor, plain: Tensor, project: Projections, attention: Attention, frames: int) -> Tensor:
        """Return what is to be added to `plain`.

        Args:
            tokens: normalised input of the self-attention, `(clips * frames, pixels, channels)`.
            plain: its output, after the output projection, same shape.
        """
        x, s = tokens.unflatten(0, (-1, frames)), plain.unflatten(0, (-1, frames))
        added = torch.zeros_like(s)
        if frames > 1:
            r = attend_to_memory(project, attention, x[:, 1:], x[:, 0], self.cell(x[:, :-1]))
            added = torch.cat([added[:, :1], self.mix(s) * (r - s[:, 1:])], dim=1)
        return added.flatten(0, 1)


def attend_to_memory(
    project: Projections, attention: Attention, frames: Tensor, first: Tensor, memory: Tensor
) -> Tensor:
    """Compute R_i = Attn(W_Q X_i, W_K [X_1 ; m_i], W_V [X_1 ; m_i]); frames, memory `(clips, frames, pixels,
    channels)`.

    The first frame, `(clips, pixels, channels)`, is projected once and shared by all frames of its clip.
    """

    def beside_the_first(to: nn.Module) -> Tensor:
        remembered = to(memory)
        return torch.cat([to(first)[:, None].expand_as(remembered), remembered], dim=2).flatten(0, 1)

    q = project.to_q(frames).flatten(0, 1)
    r = attention(q, beside_the_first(project.to_k), beside_the_first(project.to_v), project.heads)
    return project.to_out[0](r).unflatten(0, frames.shape[:2])
