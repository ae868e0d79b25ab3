"""What happens between two steps of a run: log, fixed-noise loss, preview, save."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...networks.motion_file import MotionInfo
from ...samplers.factors import mean_frame_difference
from ...samplers.mitigating_gradient import Mitigation
from ..base.load import Autoencoder
from ..clips.batches import Plan, TrainingClip
from ..clips.known import Known, as_it_is
from ..options import TrainOptions
from .checkpoints import keep_latest, save_state, state_of
from .export import ema_weights, exported_weights, write_result
from .held_out import fixed_noise_loss
from .loop import StepReport, Training
from .nearness import References, nearness
from .previews import Preview, below_each_other, decode_clip, sample_preview, sample_tasks, side_by_side, write_preview
from .runlog import RunLog
from .sample import Sampling
from .saves import run_name, saves_of

log = logging.getLogger("stillmotion")


@dataclass
class Milestones:
    """`after_step` is the loop's callback. `measured` are the clips of the fixed-noise loss; `references` is what
    previews are compared with, if they are.

    All processes compute, since none may have all weights; the first one writes.
    """

    training: Training
    options: TrainOptions
    run_log: RunLog
    info: MotionInfo
    facts: dict
    measured: Sequence[TrainingClip]
    preview: Preview
    vae: Autoencoder
    known: Known = as_it_is
    references: References | None = None

    @property
    def name(self) -> str:
        return run_name(self.options)

    def after_step(self, report: StepReport, save_wanted: bool) -> None:
        options, step, last = self.options, report.step, report.step == self.training.schedule.steps
        self._log(report)
        if save_wanted or step % options.save_every == 0 or last:
            self.save()  # before what needs more memory and may fail for want of it
        if step % options.held_out_every == 0 or last:
            self.measure()
        if options.preview_every and (step % options.preview_every == 0 or last):
            self.show()
        self.training.accelerator.wait_for_everyone()

    def _log(self, report: StepReport) -> None:
        numbers = {"loss": report.loss, "gradient_norm": report.gradient_norm, "learning_rate": report.learning_rate}
        parts = {f"loss_{name}": value for name, value in report.parts.items()}
        self.run_log.numbers(report.step, **numbers, **parts, seconds=round(report.seconds, 4))

    def measure(self) -> None:
        """Log the fixed-noise loss of the weights that would be exported now."""
        with ema_weights(self.training):
            loss = fixed_noise_loss(self.training, self.measured, self.known)
        name = "held_out_loss" if self.options.held_out else "training_fixed_noise_loss"
        self.run_log.numbers(self.training.step, **{name: loss})
        log.info("step %d: %s %.5f", self.training.step, name.replace("_", " "), loss)

    def show(self) -> None:
        """Write a preview, and log how much its frames differ from one another and how near it is to the clips."""
        how = sampling_of(self.options, self.training.plan)
        latents, tasks = (sample(self.training, self.preview, how) for sample in (sample_preview, sample_tasks))
        if not self.training.accelerator.is_main_process:
            return
        step = self.training.step
        made = [decode_clip(self.vae, clip) for clip in latents]
        near = nearness(self.references, latents[-1], made[-1]) if self.references else {}
        self.run_log.numbers(step, preview_frame_difference=mean_frame_difference(latents[-1]), **near)
        label, name, folder = f"step {step}\n{self.preview.label}", f"step-{step:06d}", self.options.output / "previews"
        write_preview(folder, name, label, side_by_side(made), self.options.fps)
        self.show_tasks(folder, f"{name}-known", label, tasks)

    def show_tasks(self, folder: Path, name: str, label: str, latents: Sequence[torch.Tensor]) -> None:
        """Write a row for each task: what is known, and the clip that is made of it."""
        tasks = self.preview.tasks
        if tasks:
            rows = [side_by_side([task.shown, decode_clip(self.vae, clip)]) for task, clip in zip(tasks, latents)]
            label = f"{label}\n{', '.join(task.name for task in tasks)}"
            write_preview(folder, name, label, below_each_other(rows), self.options.fps)

    def save(self) -> None:
        """Write the state to resume from and the motion file as it is now, then delete what is too old."""
        folder, step = saves_of(self.options), self.training.step
        state, tensors = state_of(self.training, self.facts), exported_weights(self.training)
        if not self.training.accelerator.is_main_process:
            return
        path = save_state(folder, state)
        write_result(folder / f"{self.name}-{step:06d}.safetensors", tensors, self.info)
        keep_latest(folder, ("state-*.pt", f"{self.name}-*.safetensors"), self.options.keep)
        log.info("step %d: saved %s", step, path)


def sampling_of(options: TrainOptions, plan: Plan) -> Sampling:
    """Return how previews are sampled: as the workflow will, that a run writes beside its motion file."""
    calmed, model = Mitigation(options.mitigation), (plan.schedule, plan.prediction, plan.zero_snr)
    return Sampling(options.preview_steps, options.guidance, options.guidance_early, calmed, *model)
