"""Animated previews of a clip while it is sampled: frames by the host's own previewer, sent to a script of the page.

The preview method is the one that is set in the host, also none. Nothing of the host is replaced: the callback of a run
is called as before, and ours after it.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import latent_preview
from comfy.patcher_extension import WrappersMP
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from .settings import KEY, asked_frames

log = logging.getLogger(KEY)

PREVIEWS = "stillmotion_previews"
SHARE = 0.02
"""Of the time of a run that previews may take after the first; where a previewer is slow, steps are left out."""

FAILURES = RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, OSError
"""What a previewer, the host's or another pack's, raises on latents that it does not know; a cancelled run is none."""

LARGEST, MOST_FRAMES, FPS = 256, 32, 8


def with_previews(model):
    """Return MODEL, a clone of its own, with animated previews; where it has them already it stays as it is."""
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, PREVIEWS):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, PREVIEWS, outer_sample)
    return model


def outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *args, **kwargs):
    """Show the clip after each step, beside what the host shows; a run without a callback is not for a page."""
    model = executor.class_obj.model_patcher
    previewer = callback and latent_preview.get_previewer(model.load_device, model.model.latent_format)
    if previewer:
        frames = asked_frames(model.get_attachment(KEY) or ())
        callback = after(callback, Previews(previewer.decode_latent_to_preview, frames, send))
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)


def after(callback: Callable, show: Callable[[Tensor], None]) -> Callable:
    """Return a callback of a sampler that shows what is predicted after it has called the given one."""

    def both(step, x0, x, total_steps):
        callback(step, x0, x, total_steps)
        show(x0)

    return both


@dataclass
class Previews:
    """Previews of one run, made and sent while they take no more than their share of its time.

    Args:
        decode: latents of one frame, as a batch of one, to a picture.
        frames: of a clip, None where all rows are one.
        send: takes the pictures of a clip's frames.
    """

    decode: Callable[[Tensor], Image.Image]
    frames: int | None
    send: Callable[[list[Image.Image]], None]
    clock: Callable[[], float] = time.perf_counter
    spent: float = 0.0
    begun: float = field(init=False)

    def __post_init__(self):
        self.begun = self.clock()

    def __call__(self, x0: Tensor) -> None:
        now = self.clock()
        if self.spent <= SHARE * (now - self.begun):
            try:
                self._show(clips_of(x0.tensors[0] if getattr(x0, "is_nested", False) else x0, self.frames))
            except FAILURES:  # a picture on the way is not worth the run
                log.warning("No more animated previews in this run:", exc_info=True)
                self.spent = math.inf
            self.spent += self.clock() - now

    def _show(self, clips: list[list[Tensor]]) -> None:
        """Send frames of all clips; a pack's previewer that makes no pictures of single frames shows in a way of its
        own."""
        if not clips or len(clips[0]) < 2:
            return
        pictures = [[self.decode(frame) for frame in together] for together in zip(*clips)]
        if all(isinstance(picture, Image.Image) for together in pictures for picture in together):
            self.send([beside(together) for together in pictures])


def clips_of(x0: Tensor, frames: int | None) -> list[list[Tensor]]:
    """Return the frames to be shown of each clip, `MOST_FRAMES` at most, each as a batch of one; none of other latents.

    Args:
        x0: (frames, channels, height, width), of one clip or several, or (clips, channels, frames, height, width).
    """
    if x0.ndim == 4:
        clips = [list(clip.split(1)) for clip in x0.split(frames or len(x0))]
    elif x0.ndim == 5:
        clips = [list(clip.split(1, dim=2)) for clip in x0.split(1)]
    else:
        return []
    every = -(-len(clips[0]) // MOST_FRAMES)
    return [clip[::every] for clip in clips]


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures of one size side by side, and make the whole small enough to be sent at every step."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number * width, 0))
    whole.thumbnail((LARGEST * len(pictures), LARGEST))
    return whole


def send(pictures: list[Image.Image]) -> None:
    """Send an animated WebP to the page that asked for this run, where there is one."""
    from server import PromptServer  # here: it is loaded with the host's server alone

    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is None or context is None or server.client_id is None:  # None: nobody's page asked
        return
    node = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=70, method=0
    )
    image = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    server.send_sync("stillmotion.preview", {"node": node, "image": image}, server.client_id)
