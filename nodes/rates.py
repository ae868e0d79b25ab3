"""The frame rate at which the loop over the U-Net is, and what others are given where several frames became one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..networks.clip import Rows
from ..networks.inflation import Attached, double_frames, halve_frames
from ..networks.resampling import pool_rows
from ..networks.sites import stage_of


@dataclass
class Rate:
    """The frame rate at which the loop is: the `rows` of this rate, and those of the finer ones to come back to."""

    rows: Rows
    finer: list[Rows] = field(default_factory=list)

    def halve(self) -> None:
        self.finer.append(self.rows)
        self.rows = self.rows.thinned()

    def double(self) -> None:
        self.rows = self.finer.pop()

    @property
    def merged(self) -> int:
        """Return how many frames of the input one frame is at this rate."""
        return 2 ** len(self.finer)


def resample(h: Tensor, rate: Rate, attached: Sequence[Attached], site: str) -> Tensor:
    """Halve the frames after a down-resize, double them after an up-resize."""
    before = rate.rows.clip
    if stage_of(site) == "input":
        rate.halve()
        return halve_frames(h, attached, site, before)
    rate.double()
    return double_frames(h, attached, site, before, rate.rows.clip)


def announce(options: dict, given: dict, rate: Rate, rows: int) -> None:
    """Tell other packs' patches which frames they are given, where these are not all: the packs' own convention.

    Args:
        given: the options as they were before the first layer.
        rows: of the batch, at this rate.
    """
    options["original_shape"] = [rows, *given["original_shape"][1:]]
    told = given.get("ad_params")
    if rate.merged > 1:
        whole = rate.finer[0].clip
        clips = rows // rate.rows.clip.frames // len(given.get("cond_or_uncond", [0]))
        indices = [clip * whole.frames + i for clip in range(clips) for i in rate.rows.clip.indices]
        told = pack_window((told or {}).get("full_length", clips * whole.frames), indices)
    options.pop("ad_params", None)
    if told:
        options["ad_params"] = told
    if "patches" in given:
        options["patches"] = patches_at(rate, given["patches"])


def patches_at(rate: Rate, patches: dict) -> dict:
    """Return other packs' patches for a halved frame rate: those of the tokens between two attentions, GLIGEN's, hold a
    row for each frame of the input, and are given these."""
    if rate.merged == 1 or "middle_patch" not in patches:
        return patches
    # as they are now: the object goes on to other rates
    here, whole, merged = rate.rows.clip.frames, rate.finer[0].clip.frames, rate.merged

    def at_full_rate(patch: Callable, x: Tensor, extra_options: dict) -> Tensor:
        repeated = x.unflatten(0, (-1, here)).repeat_interleave(merged, dim=1)[:, :whole].flatten(0, 1)
        return patch(repeated, extra_options).unflatten(0, (-1, whole))[:, ::merged].flatten(0, 1)

    return {**patches, "middle_patch": [partial(at_full_rate, patch) for patch in patches["middle_patch"]]}


def pack_window(frames: int, indices: list[int]) -> dict:
    """Return `ad_params`: how packs that bring per-frame data look up which of a video's frames they are given."""
    return {"full_length": frames, "context_length": len(indices), "sub_idxs": indices}


def control_at(rate: Rate, control: dict | None, kind: str, rows: int) -> dict | None:
    """Return a ControlNet's residuals, of which the next one is pooled where it has a row for each of `rows` of the
    input."""
    if rate.merged > 1 and control and control.get(kind) and control[kind][-1] is not None:
        residual = control[kind][-1]
        if len(residual) == rows:
            control[kind][-1] = pool_rows(residual, rate.finer[0].clip.frames, rate.merged)
    return control


@contextmanager
def told_of_halving(merged: int) -> Iterator[None]:
    """Let an error where frames are merged say so: patches of other packs with a row for each frame meet fewer rows."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if merged == 1 or type(error) not in (IndexError, RuntimeError):  # kinds of their own: out of memory, the GPU's
            raise
        raise RuntimeError(
            f"A layer failed where the motion file makes one frame of {merged} ({error}). Mostly it is a patch with"
            " data for each frame or prompt, as ControlLLLite's or reference attention's, which is not for such files:"
            " take it off this model, or take a motion file that keeps the frame rate."
        ) from error
