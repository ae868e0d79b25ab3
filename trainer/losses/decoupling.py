"""What HiGen's training asks of each clip: to be what it is, with its own middle frame and its own measured factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...networks.asked import Asked, Given
from ...samplers.factors import Norm, appearance_similarity, latent_features, motion_factors
from ..clips.batches import Batch, generator_for


def measured(batch: Batch, norm: Norm = "l1") -> Asked:
    """Return the middle frame (F // 2), the motion factors and the similarities of each clip of a batch.

    Source: HiGen (Qing et al. 2023, arXiv 2312.04483), sections 3.2 and 3.3.

    Args:
        norm: of the motion factors, as in `motion_factors`.
    """
    clips = batch.latents.unflatten(0, (-1, batch.frames))
    features = latent_features(clips) if batch.features is None else batch.features.unflatten(0, (-1, batch.frames))
    return Asked(
        prior=Given(clips[:, batch.frames // 2]),
        motion=Given(motion_factors(clips, norm)),
        similarity=Given(appearance_similarity(features)),
    )


@dataclass(frozen=True)
class Decoupling:
    """How a run asks: `prior_dropout` and `factor_dropout` are the shares of clips that go without the prior, and
    without either factor, each for itself. `measure` tells what a batch is asked to be."""

    prior_dropout: float = 0.1
    factor_dropout: float = 0.1
    measure: Callable[[Batch], Asked] = measured

    def with_dropout(self, batch: Batch) -> Asked:
        """Return what training asks, each clip without what is dropped for it."""
        asked = self.measure(batch)
        chances = torch.stack([torch.rand(3, generator=generator_for(seed, "asked")) for seed in batch.seeds])
        shares = torch.tensor([self.prior_dropout, self.factor_dropout, self.factor_dropout])
        prior, motion, similarity = (chances >= shares).float().unbind(1)
        return replace(
            asked,
            prior=weighted(asked.prior, prior),
            motion=weighted(asked.motion, motion),
            similarity=weighted(asked.similarity, similarity),
        )


def weighted(given: Given | None, weight: Tensor) -> Given | None:
    return None if given is None else given._replace(weight=weight.to(given.value.device))
