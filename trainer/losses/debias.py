"""MotionDirector's appearance-debiased loss: the frames of a clip seen relative to one of them.

What all frames share, that is looks, is largely the anchor's too and taken away with it; what differs between frames,
that is motion, stays.
"""

from __future__ import annotations

from torch import Tensor

from ..clips.batches import Plan, number_below
from .denoising import target_of, timestep_weighted
from .objective import Seen, Term


def debiased(rows: Tensor, anchor: Tensor, beta: float = 1.0) -> Tensor:
    """Return φ(ε_i) = sqrt(β² + 1) ε_i - β ε_anchor of every frame i, the anchor too.

    Source: MotionDirector (Zhao et al. 2023, arXiv 2310.08465), eq. 7.

    Args:
        rows: (clips, frames, …); anchor: one frame of each, (clips, 1, …).
    """
    return (beta**2 + 1) ** 0.5 * rows - beta * anchor


def debiased_loss(predicted: Tensor, target: Tensor, anchors: list[int], beta: float = 1.0) -> Tensor:
    """Return ‖φ(target) - φ(predicted)‖² of each clip as a mean, (clips,), in float32: eq. 8.

    φ is linear, and the error of a velocity is that of the noise over sqrt(ᾱ): it takes away the same of both.

    Args:
        predicted, target: (clips, frames, channels, height, width).
        anchors: number of each clip's anchor frame.
    """
    clips = list(range(len(anchors)))
    seen = [debiased(rows, rows[clips, anchors].unsqueeze(1), beta) for rows in (predicted.float(), target.float())]
    return (seen[0] - seen[1]).square().flatten(1).mean(1)


def debias_loss(plan: Plan, seen: Seen) -> Tensor:
    """Return the debiased loss of a batch, weighted as its denoising loss is. A first frame that is given clean has no
    part in it."""
    batch, given = seen.batch, 1 if plan.first_frame == "clean" else 0
    both = (seen.prediction, target_of(batch, plan))
    predicted, target = (rows.unflatten(0, (-1, batch.frames))[:, given:] for rows in both)
    anchors = [number_below(batch.frames - given, seed, "anchor") for seed in batch.seeds]
    return timestep_weighted(debiased_loss(predicted, target, anchors), batch, plan).mean()


def debias_term(weight: float, plan: Plan) -> Term:
    return Term("debias", weight, lambda seen: debias_loss(plan, seen))
