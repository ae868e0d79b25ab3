"""Starting noise whose frames share a part, so that a clip starts out calmer than its frames would one by one.

Every strategy is a linear map over the frames of a clip, from `own`, independent standard normal draws e', to the noise
e, both (frames, ...). A frame's noise depends on its own draw and on the frames before it, never on later ones: a
longer clip begins as the shorter one, and with variance 1 the first frame has the noise of an image of the same seed.
With a share of 0 each strategy returns `own`, number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, sqrt

import torch
from einops import rearrange
from torch import Tensor


def iid(own: Tensor, share: float) -> Tensor:
    """Return independent frames, whatever the share."""
    return own


def shared(own: Tensor, share: float) -> Tensor:
    """Return frames with a common part e_s: any two correlate by ρ = a² / (a² + (1-a)²), a the share from 0 to 1.

    e_i = √ρ e_s + √(1-ρ) e'_i: the few-shot paper's rule, normalised to variance 1.
    """
    return equally_correlated(own, share**2 / (share**2 + (1 - share) ** 2))


def shared_as_printed(own: Tensor, share: float) -> Tensor:
    """Return e_i = a e_s + (1-a) e'_i, whose variance is a² + (1-a)²; correlations as `shared`.

    Source: the few-shot paper, and Wu et al. 2023, "LAMP: Learn a Motion Pattern" (arXiv 2310.10769), with a = 0.2.
    """
    return sqrt(share**2 + (1 - share) ** 2) * shared(own, share)


def autoregressive(own: Tensor, share: float) -> Tensor:
    """Return frames that follow the one before: k frames apart they correlate by a^k, a the share from 0 to 1.

    e_i = a e_{i-1} + √(1-a²) e'_i, e_0 = e'_0: the few-shot paper's rule, normalised to variance 1.
    """
    return chained(own, share, sqrt(1 - share**2))


def autoregressive_as_printed(own: Tensor, share: float) -> Tensor:
    """Return e_i = a e_{i-1} + (1-a) e'_i, e_0 = e'_0: the variance falls from 1 to (1-a) / (1+a) in a few frames."""
    return chained(own, share, 1 - share)


def mixed(own: Tensor, share: float) -> Tensor:
    """Return frames with a common part: any two correlate by α² / (1 + α²), α the share from 0 upward.

    e_i = α/√(1+α²) e_s + 1/√(1+α²) e'_i: the mixed noise of Ge et al. 2023, "Preserve Your Own Correlation"
    (arXiv 2305.10474), which has variance 1 as printed.
    """
    return equally_correlated(own, share**2 / (1 + share**2))


def progressive(own: Tensor, share: float) -> Tensor:
    """Return frames that follow the one before: k apart they correlate by (α/√(1+α²))^k, α the share from 0 upward.

    e_i = α/√(1+α²) e_{i-1} + 1/√(1+α²) e'_i, e_0 = e'_0: the progressive noise of the same paper, which has variance 1
    as printed.
    """
    root = sqrt(1 + share**2)
    return chained(own, share / root, 1 / root)


Rule = Callable[[Tensor, float], Tensor]
"""From independent draws `own`, (frames, ...), and the share to the noise of a clip, (frames, ...)."""


@dataclass(frozen=True)
class Strategy:
    """A noise strategy: its rule, and all that nodes, help page and tests say of it.

    Args:
        rule: gives noise of variance 1.
        summary: half a sentence for the tooltip, lower case, without a full stop.
        correlation: of two frames, from the share and how many frames they are apart, 1 or more.
        largest_share: the share goes from 0 to here; inf: no limit.
        as_printed: the paper's own rule, where its variance is not 1; None: `rule` is the paper's.
        printed_variance: variance of a frame by the paper's own rule, from the share and the frame's index.
    """

    rule: Rule
    summary: str
    correlation: Callable[[float, int], float]
    largest_share: float = inf
    as_printed: Rule | None = None
    printed_variance: Callable[[float, int], float] = lambda share, frame: 1.0

    @property
    def allowed(self) -> str:
        """Shares that the rule takes, in words."""
        return "0 or more" if self.largest_share == inf else f"from 0 to {self.largest_share:g}"


STRATEGIES = {
    "iid": Strategy(
        rule=iid,
        summary="independent frames, as from RandomNoise",
        correlation=lambda share, apart: 0.0,
    ),
    "shared": Strategy(
        rule=shared,
        summary="all frames have a part in common, as in LAMP (share 0.2)",
        correlation=lambda share, apart: share**2 / (share**2 + (1 - share) ** 2),
        largest_share=1.0,
        as_printed=shared_as_printed,
        printed_variance=lambda share, frame: share**2 + (1 - share) ** 2,
    ),
    "autoregressive": Strategy(
        rule=autoregressive,
        summary="each frame follows the one before",
        correlation=lambda share, apart: share**apart,
        largest_share=1.0,
        as_printed=autoregressive_as_printed,
        printed_variance=lambda share, frame: (1 - share + 2 * share ** (2 * frame + 1)) / (1 + share),
    ),
    "mixed": Strategy(
        rule=mixed,
        summary="all frames have a part in common, by the formula of PYoCo",
        correlation=lambda share, apart: share**2 / (1 + share**2),
    ),
    "progressive": Strategy(
        rule=progressive,
        summary="each frame follows the one before, by the formula of PYoCo",
        correlation=lambda share, apart: (share / sqrt(1 + share**2)) ** apart,
    ),
}
"""All strategies by name: what is added here is an option of the node, and tested; its help page needs a row."""

OTHER_DRAWS = 0x9E3779B97F4A7C15
"""Turns a seed into one whose draws have nothing to do with its own."""

AXES = {4: "(clips frames) c h w", 5: "clips c frames h w"}
"""Layout of frames in latents of image models and of video models."""


def chained(own: Tensor, keep: float, fresh: float) -> Tensor:
    """Return e_i = keep e_{i-1} + fresh e'_i, e_0 = e'_0, over the first axis."""
    return torch.stack(list(accumulate(own, lambda before, new: keep * before + fresh * new)))


def equally_correlated(own: Tensor, rho: float) -> Tensor:
    """Return frames of variance 1 of which any two correlate by `rho`, over the first axis.

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
    """Return noise whose frames correlate as the strategy says; clips stay independent of each other.

    Args:
        own: independent standard normal draws, (clips * frames, channels, height, width) with the frames of a clip
            adjacent, or (clips, channels, frames, height, width).
        strategy: one of `STRATEGIES`.
        share: how much frames have in common; no unit. From 0, `own` itself, to the strategy's `largest_share`.
        frames: in a clip, where they are the batch. None: all are one clip.
        printed: follow the papers where their formula changes the variance.

    Raises:
        ValueError: the share is out of range, the strategy not known, or the frames are no whole number of clips.
    """
    check_share(strategy, share)
    frames = _frames_of(own.shape, frames)
    asked = STRATEGIES[strategy]
    rule = asked.as_printed if printed and asked.as_printed else asked.rule
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
    """Draw noise for latents of `shape`, float32; see `correlate` for the layouts, the other arguments and the errors.

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


def offset_noise(noise: Tensor, offset: float, seed: int, rows: Sequence[int] | None = None) -> Tensor:
    """Return noise whose frames are lighter or darker as a whole: e + o n, n one normal number for each channel of each
    frame of each clip.

    A clip may then start dark or bright, which noise of mean 0 keeps it from where training did the same. The noise
    itself stays as it is, and the numbers of a frame depend neither on the frames after it nor on its size.

    Source: HiGen's released network (arXiv 2312.04483), with offset 0.1.

    Args:
        noise: (clips * frames, channels, height, width) or (clips, channels, frames, height, width).
        offset: no unit, 0 or more; 0 returns `noise`.
        seed: of the numbers alone.
        rows: as in `draw_noise`.

    Raises:
        ValueError: the offset is below 0.
    """
    if not 0 <= offset < inf:
        raise ValueError(f"The offset is {offset:g}; it must be 0 or more.")
    if offset == 0:
        return noise
    rows = range(len(noise)) if rows is None else rows
    generator = torch.Generator().manual_seed(seed ^ OTHER_DRAWS)
    drawn = torch.stack([torch.randn(noise.shape[1:-2], generator=generator) for _ in range(max(rows) + 1)])
    return noise + offset * drawn[list(rows), ..., None, None].to(noise)


def check_share(strategy: str, share: float) -> None:
    """Raise ValueError where the strategy is not known, or does not take this share."""
    if strategy not in STRATEGIES:
        raise ValueError(f"The noise strategy is {strategy!r}; known are {', '.join(STRATEGIES)}.")
    known = STRATEGIES[strategy]
    if not (0 <= share <= known.largest_share and share < inf):
        raise ValueError(f"The share is {share:g}; for {strategy} noise it must be {known.allowed}.")


def _frames_of(shape: Sequence[int], frames: int | None) -> int:
    if len(shape) not in AXES:
        raise ValueError(f"The latent has {len(shape)} axes, {tuple(shape)}; it must have 4, or 5 with time.")
    there = shape[0] if len(shape) == 4 else shape[2]
    frames = there if frames is None else frames
    if frames < 1 or there % frames or (len(shape) == 5 and frames != there):
        raise ValueError(f"The latent has {there} frames, which are no whole number of clips of {frames} frames.")
    return frames
