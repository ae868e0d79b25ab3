"""Starting noise whose frames share a part, so that a clip starts out calmer than its frames would one by one.

Every strategy is a linear map over the frames of a clip, from `own`, independent standard normal draws e', to the noise
e, both (frames, ...). A frame's noise depends on its own draw and on the frames before it, never on later ones: a
longer clip begins as the shorter one, and with variance 1 the first frame has the noise of an image of the same seed.
With a share of 0 each strategy returns `own`, number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf, sqrt

import torch
from einops import rearrange
from torch import Tensor


def iid(own: Tensor, share: float) -> Tensor:
    """Frames that have nothing in common, whatever the share."""
    return own


def shared(own: Tensor, share: float) -> Tensor:
    """Frames with a common part e_s: any two correlate by ρ = a² / (a² + (1-a)²), a the share from 0 to 1.

    e_i = √ρ e_s + √(1-ρ) e'_i: the few-shot paper's rule, brought back to variance 1.
    """
    return equally_correlated(own, share**2 / (share**2 + (1 - share) ** 2))


def shared_as_printed(own: Tensor, share: float) -> Tensor:
    """e_i = a e_s + (1-a) e'_i, whose variance is a² + (1-a)²; correlations as `shared`."""
    return sqrt(share**2 + (1 - share) ** 2) * shared(own, share)


def autoregressive(own: Tensor, share: float) -> Tensor:
    """Frames that follow the one before: k frames apart they correlate by a^k, a the share from 0 to 1.

    e_i = a e_{i-1} + √(1-a²) e'_i, e_0 = e'_0: the few-shot paper's rule, brought back to variance 1.
    """
    return chained(own, share, sqrt(1 - share**2))


def autoregressive_as_printed(own: Tensor, share: float) -> Tensor:
    """e_i = a e_{i-1} + (1-a) e'_i, e_0 = e'_0: the variance falls from 1 to (1-a) / (1+a) within a few frames."""
    return chained(own, share, 1 - share)


def mixed(own: Tensor, share: float) -> Tensor:
    """Frames with a common part: any two correlate by α² / (1 + α²), α the share from 0 upward.

    e_i = α/√(1+α²) e_s + 1/√(1+α²) e'_i: the mixed noise of Ge et al. 2023, "Preserve Your Own Correlation"
    (arXiv 2305.10474), which has variance 1 as printed.
    """
    return equally_correlated(own, share**2 / (1 + share**2))


def progressive(own: Tensor, share: float) -> Tensor:
    """Frames that follow the one before: k frames apart they correlate by (α/√(1+α²))^k, α the share from 0 upward.

    e_i = α/√(1+α²) e_{i-1} + 1/√(1+α²) e'_i, e_0 = e'_0: the progressive noise of the same paper, which has variance 1
    as printed.
    """
    root = sqrt(1 + share**2)
    return chained(own, share / root, 1 / root)


STRATEGIES = {
    "iid": iid,
    "shared": shared,
    "autoregressive": autoregressive,
    "mixed": mixed,
    "progressive": progressive,
}
AS_PRINTED = {**STRATEGIES, "shared": shared_as_printed, "autoregressive": autoregressive_as_printed}
"""The same, as the papers print them; only two of them change the variance there."""

LARGEST_SHARE = {"shared": 1.0, "autoregressive": 1.0}

AXES = {4: "(clips frames) c h w", 5: "clips c frames h w"}
"""How frames lie in latents of image models and of video models."""


def chained(own: Tensor, keep: float, fresh: float) -> Tensor:
    """e_i = keep e_{i-1} + fresh e'_i, e_0 = e'_0, over the first axis."""
    return torch.stack(list(accumulate(own, lambda before, new: keep * before + fresh * new)))


def equally_correlated(own: Tensor, rho: float) -> Tensor:
    """Frames of variance 1 of which any two correlate by `rho`, over the first axis.

    The same distribution as √ρ e_s + √(1-ρ) e'_i, but e_s is not drawn. What i frames tell about the next one is their
    mean m_i, so that e_i = iρ/(1+(i-1)ρ) m_i + √((1-ρ)(1+iρ)/(1+(i-1)ρ)) e'_i.
    """
    frames, mean = [own[0]], own[0]
    for i in range(1, len(own)):
        known = 1 + (i - 1) * rho
        frames.append(i * rho / known * mean + sqrt((1 - rho) * (1 + i * rho) / known) * own[i])
        mean = mean.lerp(frames[i], 1 / (i + 1))
    return torch.stack(frames)


def correlate(own: Tensor, strategy: str, share: float, *, frames: int | None = None, printed: bool = False) -> Tensor:
    """Noise whose frames correlate as the strategy says; clips stay independent of each other.

    Args:
        own: independent standard normal draws, (clips * frames, channels, height, width) with the frames of a clip
            adjacent, or (clips, channels, frames, height, width).
        strategy: one of `STRATEGIES`.
        share: how much frames have in common; no unit. 0 is `own` itself. Up to 1 for `shared` and `autoregressive`,
            where 1 makes all frames of a clip equal; without a limit for `mixed` and `progressive`; unused for `iid`.
        frames: in a clip, where they are the batch. None: all are one clip.
        printed: follow the papers where their formula changes the variance.

    Raises:
        ValueError: the share is out of range, the strategy not known, or the frames are no whole number of clips.
    """
    check_share(strategy, share)
    frames = _frames_of(own.shape, frames)
    rule = (AS_PRINTED if printed else STRATEGIES)[strategy]
    axes, time_first = AXES[own.ndim], "frames clips c h w"
    noise = rule(rearrange(own, f"{axes} -> {time_first}", frames=frames), share)
    return rearrange(noise, f"{time_first} -> {axes}").contiguous()


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator,
    strategy: str = "iid",
    share: float = 0.0,
    *,
    frames: int | None = None,
    printed: bool = False,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Noise for latents of `shape`, float32; see `correlate` for the layouts, the other arguments and the errors.

    The draws of `iid` are ComfyUI's own for the same seed, and the other strategies start from the same draws: the
    noise of a clip depends neither on the clips after it nor, where frames are the batch, on its own length. (torch
    draws in blocks of 16; where a frame's numbers do not fill them, the last 15 of the batch depend on its size.)

    Args:
        generator: the only source of randomness; the noise is made on its device.
        rows: numbers that the rows of `shape` have in a larger batch, ComfyUI's `batch_index`: they get the noise that
            they have there, where the larger batch has the same `frames`. None: 0, 1, 2 …
    """
    if rows is None:
        own = torch.randn(shape, generator=generator, device=generator.device)
        return correlate(own, strategy, share, frames=frames, printed=printed)
    count = max(rows) + 1
    if len(shape) == 4 and frames:
        count += -count % frames  # up to the end of the clip
    own = [torch.randn(1, *shape[1:], generator=generator, device=generator.device) for _ in range(count)]
    return correlate(torch.cat(own), strategy, share, frames=frames, printed=printed)[list(rows)]


def check_share(strategy: str, share: float) -> None:
    """Raises ValueError: the strategy is not known, or the share is none that it allows."""
    if strategy not in STRATEGIES:
        raise ValueError(f"The noise strategy is {strategy!r}; known are {', '.join(STRATEGIES)}.")
    largest = LARGEST_SHARE.get(strategy, inf)
    if not (0 <= share <= largest and share < inf):
        allowed = "0 or more" if largest == inf else f"from 0 to {largest:g}"
        raise ValueError(f"The share is {share:g}; for {strategy} noise it must be {allowed}.")


def _frames_of(shape: Sequence[int], frames: int | None) -> int:
    if len(shape) not in AXES:
        raise ValueError(f"The latent has {len(shape)} axes, {tuple(shape)}; it must have 4, or 5 with time.")
    there = shape[0] if len(shape) == 4 else shape[2]
    frames = there if frames is None else frames
    if frames < 1 or there % frames or (len(shape) == 5 and frames != there):
        raise ValueError(f"The latent has {there} frames, which are no whole number of clips of {frames} frames.")
    return frames
