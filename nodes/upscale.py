"""Upscales a clip with the model that made it: the frames are enlarged, and sampled again on windows of the clip.

VRAM holds the latents and one window; images are enlarged, encoded and decoded a few frames at a time. A video VAE
encodes the clip as a whole, a long one in overlapping pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..samplers.windows import window_count
from .compat import io, schema, seed_input
from .node import Node
from .windowing import check_one_clip, sampled_on_windows
from .windows import window_inputs

CHUNK = 8
"""Frames that are enlarged and encoded, or decoded, at a time."""

PIECE, SHARED = 64, 8
"""Frames that a video VAE sees at a time, and how many of these it has seen before: what the host's own nodes take."""


def check_image(image: Tensor) -> None:
    """Raise ValueError where IMAGE is no clip of RGB images."""
    if image.ndim != 4 or not len(image) or image.shape[-1] != 3:
        alpha = " The fourth channel is probably alpha: remove it before." if image.shape[-1] == 4 else ""
        raise ValueError(f"The image is {tuple(image.shape)}; needed are (frames, height, width, 3 channels).{alpha}")


def check_family(model, vae) -> None:
    """Raise ValueError where the latents of MODEL are not those of VAE, or neither images nor videos."""
    ours = model.get_model_object("latent_format")
    made, taken = (vae.latent_dim, vae.latent_channels), (ours.latent_dimensions, ours.latent_channels)
    if made != taken:
        raise ValueError(
            f"This VAE makes {kind_of(*made)}, this model takes {kind_of(*taken)}: use the VAE of the model's family."
        )
    if vae.latent_dim not in KINDS or vae.not_video:
        raise ValueError("This node is for image models with a motion file and for video models; this one is neither.")


KINDS = {2: "image latents", 3: "video latents"}


def kind_of(dimensions: int, channels: int) -> str:
    return f"{KINDS.get(dimensions, 'other latents')} with {channels} channels"


def whole_frames(vae, frames: int) -> int:
    """Return as many frames, or the few more that a video VAE needs to leave none out: 1, 5, 9 … for most."""
    if vae.latent_dim == 2:
        return frames
    to_latent, to_pixels = vae.downscale_ratio[0], vae.upscale_ratio[0]
    return next(n for n in count(frames) if to_pixels(to_latent(n)) == n)


def latent_frames(vae, frames: int) -> int:
    """Return how many frames the latents of so many frames have."""
    return frames if vae.latent_dim == 2 else vae.downscale_ratio[0](whole_frames(vae, frames))


def scaled_side(pixels: int, scale: float, multiple: int) -> int:
    """Return the multiple that is nearest to `pixels * scale`, at least one."""
    return multiple * max(1, int(pixels * scale / multiple + 0.5))


def enlarge(frames: Tensor, height: int, width: int, method: str, upscale_model=None) -> Tensor:
    """Resize frames (frames, height, width, 3): by the upscale model, and by resampling to what it leaves."""
    if upscale_model is not None:
        # here and not above: a second copy of a module of the host, for which its start need not wait
        from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

        frames = ImageUpscaleWithModel.execute(upscale_model, frames).args[0]
    if frames.shape[1:3] == (height, width):
        return frames
    if frames.shape[1] > height:
        method = "lanczos"  # the others skip pixels where they shrink
    enlarged = comfy.utils.common_upscale(frames.movedim(-1, 1), width, height, method, "disabled")
    return enlarged.movedim(1, -1).clamp(0, 1)


def encode(vae, frames: Tensor, tile: int) -> Tensor:
    """Encode frames to latents, in tiles where a side is longer than `tile` pixels, or a video longer than a piece."""
    is_long = vae.latent_dim == 3 and len(frames) > PIECE
    if not is_long and max(frames.shape[1:3]) <= tile:
        return vae.encode(frames)
    pieces = {"tile_t": PIECE, "overlap_t": SHARED} if vae.latent_dim == 3 else {}
    return vae.encode_tiled(frames, tile_x=tile, tile_y=tile, overlap=tile // 8, **pieces)


def decode(vae, latents: Tensor, tile: int) -> Tensor:
    """Decode latents to frames (frames, height, width, 3), tiled as in `encode`."""
    tile, pieces = tile // vae.spacial_compression_encode(), {}
    if vae.latent_dim == 3:
        step = vae.temporal_compression_decode()
        pieces = {"tile_t": PIECE // step, "overlap_t": max(1, SHARED // step)}
    is_long = vae.latent_dim == 3 and latents.shape[2] > pieces["tile_t"]
    if not is_long and max(latents.shape[-2:]) <= tile:
        frames = vae.decode(latents)
    else:
        frames = vae.decode_tiled(latents, tile_x=tile, tile_y=tile, overlap=tile // 8, **pieces)
    return frames.flatten(0, -4)


def encoded(vae, parts: Iterator[Tensor], frames: int, tile: int) -> Tensor:
    """Encode a clip that comes a few frames at a time; a video VAE gets all, padded by the last frame to its length."""
    if vae.latent_dim == 2:
        return torch.cat([encode(vae, pixels, tile) for pixels in parts])
    pixels = [*parts]
    again = pixels[-1][-1:].expand(whole_frames(vae, frames) - frames, -1, -1, -1)
    return encode(vae, torch.cat([*pixels, again]), tile)


def decoded(vae, latents: Tensor, shape: tuple[int, int, int], tile: int, bar) -> Tensor:
    """Decode a clip (frames, height, width, 3); `shape` is its first three sizes."""
    out = torch.empty(*shape, 3)
    if vae.latent_dim == 3:
        out[:] = decode(vae, latents, tile)[: len(out)]
        bar.update(len(out))
        return out
    for part in chunks(len(out), bar):
        out[part] = decode(vae, latents[part], tile)
    return out


def chunks(frames: int, bar) -> Iterator[slice]:
    """Yield a few frames at a time, until the run is cancelled; the progress bar counts each that is done."""
    for start in range(0, frames, CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield slice(start, start + CHUNK)
        bar.update(min(CHUNK, frames - start))


def with_progress(model, bar, windows: int):
    """Return a clone of MODEL that counts each window on the progress bar, and the callback for each step."""
    model, end_of_step = model.clone(), bar.current + windows
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def after_window(executor, *args, **kwargs):
        predictions = executor(*args, **kwargs)
        bar.update_absolute(min(bar.current + 1, end_of_step))  # some samplers look twice in a step
        return predictions

    def after_step(step, x0, x, steps):
        nonlocal end_of_step
        bar.update_absolute(end_of_step, preview=previewer and previewer.decode_latent_to_preview_image("JPEG", x0))
        end_of_step += windows

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "stillmotion_progress", after_window)
    return model, after_step


class MultiDiffusionUpscale(Node):
    """Node that upscales a clip, with detail that the model adds, sampled on overlapping windows."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StillmotionMultiDiffusionUpscale",
            display_name="Temporal MultiDiffusion Upscale",
            category="stillmotion/sampling",
            description="Enlarges a clip and samples it again with its motion on, on overlapping windows, so that new"
            " detail does not flicker.",
            search="upscale video, video upscale, hires fix, high resolution, ultimate upscale, multidiffusion, tiled,"
            " enhance",
            inputs=[
                io.Model.Input("model", tooltip="The model with its motion file; without one, detail flickers."),
                io.Conditioning.Input("positive", tooltip="The prompt: what the clip shows."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("image", tooltip="The clip: frames of any size, RGB without alpha."),
                io.Float.Input(
                    "scale",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    tooltip="New size over old. A side becomes the nearest multiple of what the VAE needs, mostly 8.",
                ),
                io.Combo.Input(
                    "resize",
                    options=["bicubic", "lanczos", "bilinear"],
                    tooltip="How frames are enlarged without upscale model, or where it makes them too small.",
                ),
                *window_inputs(),
                io.Float.Input(
                    "denoise",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="As in KSampler. 0.3 to 0.5 adds detail; 0 only resizes.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Steps of the sampler. 15 to 25."),
                io.Float.Input("cfg", default=6.0, min=0.0, max=100.0, step=0.1, tooltip="As in KSampler. 5 to 7."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."),
                seed_input("Seed of the noise that is added to the frames."),
                io.Int.Input(
                    "vae_tile",
                    default=1024,
                    min=128,
                    max=8192,
                    step=64,
                    tooltip="Frames with a longer side, in pixels, are encoded and decoded in tiles of this size."
                    " Lower it where the VAE runs out of VRAM.",
                ),
                io.UpscaleModel.Input(
                    "upscale_model", optional=True, tooltip="Enlarges the frames, ESRGAN for example, before sampling."
                ),
            ],
            outputs=[io.Image.Output("upscaled_image", display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        vae,
        image,
        scale,
        resize,
        window,
        overlap,
        fuse,
        denoise,
        steps,
        cfg,
        sampler_name,
        scheduler,
        seed,
        vae_tile,
        upscale_model=None,
    ) -> io.NodeOutput:
        check_image(image)
        check_family(model, vae)
        model = sampled_on_windows(model, window, overlap, fuse)
        frames = len(image)
        check_one_clip(model, frames)
        windows = window_count(latent_frames(vae, frames), window, overlap)
        height, width = (scaled_side(side, scale, vae.spacial_compression_encode()) for side in image.shape[1:3])
        bar = comfy.utils.ProgressBar(2 * frames + steps * windows)

        parts = chunks(frames, bar)
        larger = (enlarge(image[part], height, width, resize, upscale_model) for part in parts)
        latents = encoded(vae, larger, frames, vae_tile)

        model, callback = with_progress(model, bar, windows)
        noise = comfy.sample.prepare_noise(latents, seed)
        settings = (steps, cfg, sampler_name, scheduler, positive, negative)
        quiet = not comfy.utils.PROGRESS_BAR_ENABLED
        latents = comfy.sample.sample(
            model, noise, *settings, latents, denoise=denoise, callback=callback, disable_pbar=quiet, seed=seed
        )

        return io.NodeOutput(decoded(vae, latents, (frames, height, width), vae_tile, bar))
