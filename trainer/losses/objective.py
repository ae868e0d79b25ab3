"""The objective: the denoising loss and any number of further terms, in one module around the network, whose forward is
the loss of a batch, so that several processes compute it as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...networks.asked import NOTHING, Asked, Given
from ...networks.clip import Clip
from ...networks.inflation import Attached, Inflation
from ...networks.tokens import clip_prompts
from ..base.appearance import Looks
from ..base.host import InflatedUNet, Observed, Penalty
from ..clips.batches import Batch, Plan, a_picture_of_each
from .decoupling import Decoupling
from .denoising import noisy_rows, simple_loss


@dataclass(frozen=True)
class Seen:
    """A batch as a term sees it.

    `prediction`, `middle`: the U-Net's, and the output of its middle block. `penalties`: what the term's own `penalty`
    made of the self-attentions on the way up, in order. `observe`: runs the batch again, with other strengths.
    `kept`: what the term puts there it gets back after the step, see `Stateful`.
    """

    batch: Batch
    inflation: Inflation
    prediction: Tensor
    middle: Tensor
    penalties: list[Tensor]
    observe: Callable[[Attached], Observed]
    kept: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Term:
    """weight · ramp · `every` · function(seen), at the steps that are multiples of `every`.

    `ramp`: steps in which the weight rises from 0. `penalty`: of queries and keys of a self-attention and the frames,
    for terms that look at attention maps. A `function` with weights or a memory of its own is a module, see `Stateful`.
    """

    name: str
    weight: float
    function: Callable[[Seen], Tensor]
    every: int = 1
    ramp: int = 0
    penalty: Penalty | None = None

    def factor(self, step: int) -> float:
        """Return what the term is multiplied by at step 1, 2, …."""
        return self.weight * (min(1.0, step / self.ramp) if self.ramp else 1.0) * self.every


@runtime_checkable
class Stateful(Protocol):
    """A term's function with a state that outlives a step."""

    def after_step(self, kept: Tensor) -> None:
        """Take what was kept of all clips of a step, in the order of their places in it, on every process."""

    def state(self) -> dict:
        """Return what a resumed run needs."""
        ...

    def restore(self, state: dict) -> None: ...


class Losses(NamedTuple):
    """`total`: what is minimised. `parts`: what it is made of, before its weights, for the log. `kept`: of each term,
    what it will want after the step, (clips or more, channels)."""

    total: Tensor
    parts: dict[str, Tensor]
    kept: dict[str, Tensor]


class Objective(nn.Module):
    """L = L_simple + Σ terms, the mean over the clips of a batch; of pictures, L_simple of the image model alone.

    Where looks are learnt beside, L_simple of one frame of each clip is added, which no other weight has a part in.

    Args:
        decoupling: what each clip is asked to be; None: nothing.
    """

    def __init__(
        self, network: InflatedUNet, plan: Plan, terms: Sequence[Term] = (), decoupling: Decoupling | None = None
    ):
        super().__init__()
        self.network, self.plan, self.terms, self.decoupling = network, plan, tuple(terms), decoupling
        assert len({term.name for term in terms}) == len(terms), "terms are told apart by their names"
        self.modules_of_terms = nn.ModuleDict({t.name: t.function for t in terms if isinstance(t.function, nn.Module)})

    def forward(self, batch: Batch, step: int) -> Losses:
        if batch.frames == 1:
            return self._of_pictures(batch)
        terms = [term for term in self.terms if step % term.every == 0]
        watching = [term for term in terms if term.penalty]
        asked = with_condition(self.decoupling.with_dropout(batch) if self.decoupling else NOTHING, batch)
        seen = self._observe(batch, self.network.attached(asked), watching)
        total = simple = simple_loss(seen.prediction, batch, self.plan).mean()
        parts, kept = {"simple": simple.detach()} if self.terms or self.network.spatial else {}, {}
        for term in terms:
            view = self._view(batch, seen, watching.index(term) if term.penalty else None)
            loss = term.function(view)
            total = total + term.factor(step) * loss
            parts[term.name] = loss.detach()
            kept |= {term.name: view.kept[0]} if view.kept else {}
        if self.network.appearance:
            looks = self._of_pictures(a_picture_of_each(batch))
            total, parts = total + looks.total, parts | looks.parts
        return Losses(total, parts, kept)

    def _of_pictures(self, batch: Batch) -> Losses:
        """Train what is trained of the image model, and nothing else: no other weight gets a gradient."""
        loss = simple_loss(self._observe(batch, [], looks="learn").prediction, batch, self.plan).mean()
        return Losses(loss, {"pictures": loss.detach()}, {})

    def _observe(
        self, batch: Batch, attached: Sequence[Attached], watching: Sequence[Term] = (), looks: Looks = "keep"
    ) -> Observed:
        def penalties(q: Tensor, k: Tensor, frames: int) -> Tensor:
            return torch.stack([term.penalty(q, k, frames) for term in watching])

        sample, clip = noisy_rows(batch, self.plan), Clip.of(batch.frames)
        penalty = penalties if watching else None
        # said, not compared: the memory estimate runs on tensors without data
        prompts = clip_prompts(len(batch.text), batch.frames)
        how = batch.timesteps, batch.text, clip, None, attached, penalty, prompts, looks
        return self.network.observe(sample, *how)

    def _view(self, batch: Batch, seen: Observed, penalty: int | None) -> Seen:
        penalties = [] if penalty is None else [each[penalty] for each in seen.penalties]
        again = lambda attached: self._observe(batch, [attached])  # noqa: E731
        return Seen(batch, self.inflation, seen.prediction, seen.middle, penalties, again)

    @property
    def inflation(self) -> Inflation:
        assert self.network.inflation is not None, "there is nothing to train"
        return self.network.inflation

    def predict(self, sample: Tensor, timesteps: Tensor, text: Tensor, clip: Clip, asked: Asked = NOTHING) -> Tensor:
        """Predict as the network does. Between steps call this: it gathers weights that are sharded."""
        return self.network(sample, timesteps, text, clip, None, asked)

    def predict_picture(self, sample: Tensor, timesteps: Tensor, text: Tensor, clip: Clip) -> Tensor:
        """Predict as the image model does, with what is trained of it; to be called as `predict` is."""
        return self.network.observe(sample, timesteps, text, clip, None, []).prediction

    def asked(self, batch: Batch) -> Asked:
        """Return what a batch is asked to be, nothing dropped."""
        return with_condition(self.decoupling.measure(batch) if self.decoupling else NOTHING, batch)

    @property
    def everys(self) -> list[int]:
        """From how many steps to the next one a term comes, for all that do not come at each."""
        return sorted({term.every for term in self.terms} - {1})

    def after_step(self, losses: Sequence[Losses], gather: Callable[[Tensor], Tensor]) -> None:
        """Hand each term what it kept of all micro-batches of a step, of all processes."""
        for term in self._stateful():
            if rows := [one.kept[term.name] for one in losses if term.name in one.kept]:
                everyone = gather(torch.stack(rows)).unflatten(0, (-1, len(rows)))  # processes first
                term.function.after_step(everyone.transpose(0, 1).flatten(0, 2))

    def state(self) -> dict:
        """Return what a resumed run needs beside the inflation's weights."""
        return {term.name: term.function.state() for term in self._stateful()}

    def restore(self, state: dict) -> None:
        for term in self._stateful():
            term.function.restore(state[term.name])

    def _stateful(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term.function, Stateful)]


def with_condition(asked: Asked, batch: Batch) -> Asked:
    """Return what a batch is asked to be, with its known pixels."""
    if batch.condition is None:
        return asked
    return replace(asked, condition=Given(batch.condition.unflatten(0, (-1, batch.frames))))
