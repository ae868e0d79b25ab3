"""The upscaler against the host's own nodes wired by hand, and what of a clip is in memory at a time."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from stillmotion.samplers.windows import window_count, windows_of

FRAMES = 7


@pytest.fixture
def node(pack):
    """The node, as the host runs it, with small settings."""
    node = pack["StillmotionMultiDiffusionUpscale"]
    run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
    settings = {"scale": 2.0, "resize": "bicubic", "window": 4, "overlap": 2, "fuse": "pyramid", "denoise": 0.5}
    settings |= {"steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "seed": 3, "vae_tile": 1024}

    @torch.inference_mode()
    def upscale(model, vae, image, **changed):
        return run(model, *prompts(), vae, image, **(settings | changed)).args[0]

    return upscale


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, 7, 768, generator=generator), {}]] for _ in range(2)]


def clip(frames=FRAMES, height=24, width=40):
    """Smooth moving pictures, which a resampling filter does not turn into something else."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 3, n) for n in (frames, height, width)), indexing="ij")
    return torch.stack([(x + t).sin(), (y - t).cos(), (x * y).sin()], dim=-1) / 2 + 0.5


class Mean:
    """A VAE without weights: a latent is the mean of 8 x 8 pixels, and their sum in the fourth channel."""

    latent_dim, latent_channels, not_video = 2, 4, False

    def __init__(self):
        self.calls = []

    def spacial_compression_encode(self):
        return 8

    def encode(self, frames):
        self.calls.append(("encode", *frames.shape))
        latents = torch.nn.functional.avg_pool2d(frames.movedim(-1, 1), 8)
        return torch.cat([latents, latents.sum(1, keepdim=True)], dim=1)

    def decode(self, latents):
        self.calls.append(("decode", *latents.shape))
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)

    def encode_tiled(self, frames, **tiles):
        self.calls.append(("tiles", tiles))
        return self.encode(frames)

    def decode_tiled(self, latents, **tiles):
        self.calls.append(("tiles", tiles))
        return self.decode(latents)


@pytest.fixture
def vae(comfyui):
    """The host's VAE around a random TAESD."""
    import comfy.sd
    import comfy.taesd.taesd

    torch.manual_seed(0)
    taesd = comfy.taesd.taesd.TAESD()
    for name, parameter in taesd.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name == "vae_scale"), std=0.15 * (name != "vae_scale"))
    return comfy.sd.VAE(sd=taesd.state_dict())


@pytest.fixture
def upscaler(comfyui):
    """An ESRGAN of few random weights, as the host's loader makes it."""
    import comfy.model_management
    import comfy.model_patcher
    import spandrel
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    torch.manual_seed(0)
    net = RRDBNet(num_filters=8, num_blocks=1, scale=4)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.01, std=0.1)
    descriptor = spandrel.ModelLoader().load_from_state_dict(net.state_dict()).eval()
    device = comfy.model_management.get_torch_device()
    descriptor.patcher = comfy.model_patcher.ModelPatcher(descriptor.model, device, torch.device("cpu"))
    return descriptor


def test_it_is_the_hosts_own_nodes_one_after_the_other(node, small_model, vae):
    """Upscale Image, VAE Encode, Temporal Windows, KSampler, VAE Decode."""
    from stillmotion.nodes.windowing import sampled_on_windows

    import nodes

    model, positive, negative = small_model(), *prompts()
    (larger,) = nodes.ImageScale().upscale(clip(), "bicubic", 80, 48, "disabled")
    (latent,) = nodes.VAEEncode().encode(vae, larger.clamp(0, 1))
    windows = sampled_on_windows(model, 4, 2, "pyramid")
    (latent,) = nodes.common_ksampler(windows, 3, 2, 2.0, "euler", "normal", positive, negative, latent, denoise=0.5)
    (expected,) = nodes.VAEDecode().decode(vae, latent)
    got = node(model, vae, clip())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert (got - larger).abs().mean() > 0.01 and got.std() > 0.01


def test_denoise_zero_only_enlarges(node, small_model):
    """SDEdit at strength 0 returns its input."""
    pixels = torch.nn.functional.interpolate(clip().movedim(-1, 1), (48, 80), mode="bicubic").clamp(0, 1)
    expected = Mean().decode(Mean().encode(pixels.movedim(1, -1)))
    torch.testing.assert_close(node(small_model(), Mean(), clip(), denoise=0.0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "scale", "expected"),
    [
        (24, 40, 2.0, (48, 80)),
        (27, 41, 2.0, (56, 80)),
        (27, 41, 1.5, (40, 64)),
        (25, 39, 1.0, (24, 40)),
        (3, 9, 1.0, (8, 8)),
    ],
)
def test_each_side_is_the_nearest_multiple_that_the_vae_takes(node, small_model, height, width, scale, expected):
    got = node(small_model(), Mean(), clip(2, height, width), scale=scale, steps=1)
    assert got.shape == (2, *expected, 3)
    assert all(abs(new - old * scale) <= 4 or new == 8 for new, old in zip(expected, (height, width)))


@pytest.mark.parametrize(("scale", "filter"), [(4.0, None), (2.0, "lanczos"), (6.0, "bilinear")])
def test_an_upscale_model_enlarges_first(node, small_model, upscaler, scale, filter):
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    import nodes

    pixels = ImageUpscaleWithModel.execute(upscaler, clip(3)).args[0]
    assert pixels.shape == (3, 96, 160, 3) and pixels.std() > 0.01
    if filter:
        (pixels,) = nodes.ImageScale().upscale(pixels, filter, int(40 * scale), int(24 * scale), "disabled")
    expected = Mean().decode(Mean().encode(pixels.clamp(0, 1)))
    got = node(small_model(), Mean(), clip(3), scale=scale, denoise=0.0, resize="bilinear", upscale_model=upscaler)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def watched(model):
    """The MODEL, and the sizes of the batches that its network gets."""
    from comfy.patcher_extension import WrappersMP

    batches, model = [], model.clone()

    def note(executor, x, *args, **kwargs):
        batches.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", note)
    return model, batches


def test_only_a_few_frames_are_encoded_and_only_a_window_is_sampled_at_a_time(node, small_model):
    from stillmotion.nodes.upscale import CHUNK

    vae, (model, batches) = Mean(), watched(small_model())
    node(model, vae, clip(2 * CHUNK + 3), steps=1, denoise=1.0)
    assert [(kind, frames) for kind, frames, *_ in vae.calls] == [
        *itertools.product(["encode"], [CHUNK, CHUNK, 3]),
        *itertools.product(["decode"], [CHUNK, CHUNK, 3]),
    ]
    assert max(batches) == 2 * 4 and sum(batches) == 2 * 4 * len(windows_of(2 * CHUNK + 3, 4, 2))


def test_large_frames_pass_the_vae_in_tiles(node, small_model):
    vae = Mean()
    node(small_model(), vae, clip(2), steps=1, vae_tile=128)
    assert not any(call[0] == "tiles" for call in vae.calls)
    wide = node(small_model(), vae, clip(2, 40, 72), steps=1, vae_tile=128)
    tiles = [call[1] for call in vae.calls if call[0] == "tiles"]
    assert tiles == [{"tile_x": 128, "tile_y": 128, "overlap": 16}, {"tile_x": 16, "tile_y": 16, "overlap": 2}]
    assert wide.shape == (2, 80, 144, 3)


def test_tiles_of_the_hosts_vae_give_about_the_same_picture(node, small_model, vae):
    model = small_model()
    whole, tiled = (node(model, vae, clip(2, 72, 80), denoise=0.0, vae_tile=tile) for tile in (1024, 128))
    assert not torch.equal(whole, tiled)
    assert (whole - tiled).abs().mean() < 0.1 * whole.std()


class Bar:
    """Notes where the bar of the progress stood."""

    def __init__(self, total, node_id=None):
        self.total, self.current, self.stood = total, 0, [0]
        bars.append(self)

    def update_absolute(self, value, total=None, preview=None):
        self.current = value
        self.stood.append(value)

    def update(self, value):
        self.update_absolute(self.current + value)


bars = []


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_progress_is_that_of_windows_and_steps(node, small_model, monkeypatch, sampler):
    import comfy.utils

    bars.clear()
    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    node(small_model(), Mean(), clip(), steps=3, sampler_name=sampler)
    (bar,) = bars
    assert bar.total == 2 * FRAMES + 3 * window_count(FRAMES, 4, 2) == bar.current
    assert bar.stood == sorted(bar.stood)
    assert set(range(FRAMES, FRAMES + 9)) <= set(bar.stood)


@pytest.mark.parametrize("stage", ["encode", "sample", "decode"])
def test_a_cancelled_run_stops_where_it_is_and_leaves_the_next_one_as_it_was(node, small_model, stage):
    import comfy.model_management

    class Cancelled(Mean):
        def encode(self, frames):
            if stage == "encode":
                comfy.model_management.interrupt_current_processing()
            return super().encode(frames)

        def decode(self, latents):
            if stage == "decode":
                comfy.model_management.interrupt_current_processing()
            return super().decode(latents)

    def cancel(args):
        comfy.model_management.interrupt_current_processing()
        return args["denoised"]

    model = small_model()
    whole = node(model, Mean(), clip(11))
    cancelled, vae = model.clone(), Cancelled()
    if stage == "sample":
        cancelled.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        node(cancelled, vae, clip(11))
    assert len(vae.calls) == {"encode": 1, "sample": 2, "decode": 3}[stage]
    assert torch.equal(node(model, Mean(), clip(11)), whole)


def test_the_motion_of_the_model_is_used_on_the_windows(node, small_model):
    """A network that takes the mean of the frames that it sees makes them alike."""
    from comfy.patcher_extension import WrappersMP

    def mean(executor, x, *args, **kwargs):
        out = executor(x, *args, **kwargs).unflatten(0, (2, -1))
        sizes.append(out.shape[1])
        return out.mean(1, keepdim=True).expand_as(out).flatten(0, 1)

    sizes = []
    model = small_model()
    calm = model.clone()
    calm.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "mean", mean)
    assert (node(calm, Mean(), clip()) - node(model, Mean(), clip())).abs().max() > 0.01
    assert set(sizes) == {4}


def test_one_frame_is_upscaled_as_a_picture(node, small_model):
    one = node(small_model(), Mean(), clip(1), window=16, overlap=4)
    assert one.shape == (1, 48, 80, 3) and torch.isfinite(one).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 16, 16, 4), r"\(2, 16, 16, 4\).* The fourth channel is probably alpha"),
        (torch.zeros(2, 16, 16, 1), r"\(2, 16, 16, 1\); needed are \(frames, height, width, 3 channels\)"),
        (torch.zeros(0, 16, 16, 3), r"\(0, 16, 16, 3\); needed are"),
        (torch.zeros(16, 16, 3), r"\(16, 16, 3\); needed are"),
    ],
)
def test_an_image_that_is_no_clip_of_rgb_images_is_refused(node, small_model, image, message):
    with pytest.raises(ValueError, match=message):
        node(small_model(), Mean(), image)


def test_a_vae_of_another_family_is_refused_before_anything_runs(node, small_model, wan):
    vae, theirs = Mean(), "image latents with 4 channels, this model takes video latents with 16 channels"
    with pytest.raises(ValueError, match=f"makes {theirs}: use the VAE of"):
        node(wan, vae, clip())
    vae.latent_channels = 16
    with pytest.raises(ValueError, match="image latents with 16 channels, this model takes image latents with 4"):
        node(small_model(), vae, clip())
    vae.latent_dim, vae.not_video = 3, True
    with pytest.raises(ValueError, match="image models with a motion file and for video models; this one is neither"):
        node(wan, vae, clip())
    assert not vae.calls


@pytest.fixture
def video_vae(comfyui):
    """The host's VAE around a small random one of Wan's."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    halved = [False, True, True]
    net = WanVAE(4, 16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=halved)
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=0.2 if parameter.ndim > 1 else 0.02)
    return comfy.sd.VAE(sd=net.state_dict())


def video_prompts():
    generator = torch.Generator().manual_seed(0)
    return {name: [[torch.randn(1, 8, 16, generator=generator), {}]] for name in ("positive", "negative")}


@pytest.mark.parametrize(("frames", "whole"), [(7, 9), (9, 9), (1, 1)])
def test_a_video_model_makes_what_the_hosts_own_nodes_make(pack, wan, video_vae, frames, whole):
    """Windows count frames of the latent; of a clip that its VAE would cut, the last frame is repeated."""
    from stillmotion.nodes.windowing import sampled_on_windows

    import nodes

    prompts, image = video_prompts(), clip(frames)
    (larger,) = nodes.ImageScale().upscale(image, "bicubic", 80, 48, "disabled")
    larger = torch.cat([larger, larger[-1:].expand(whole - frames, -1, -1, -1)]).clamp(0, 1)
    plan = {"steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.5}
    with torch.inference_mode():
        (latent,) = nodes.VAEEncode().encode(video_vae, larger)
        assert latent["samples"].shape == (1, 16, (whole + 3) // 4, 6, 10)
        windows = sampled_on_windows(wan, 2, 1, "pyramid")
        (latent,) = nodes.KSampler().sample(windows, 3, latent_image=latent, **prompts, **plan)
        (expected,) = nodes.VAEDecode().decode(video_vae, latent)
        node = pack["StillmotionMultiDiffusionUpscale"]
        run = getattr(node.PREPARE_CLASS_CLONE(None), node.FUNCTION)
        settings = {"scale": 2.0, "resize": "bicubic", "window": 2, "overlap": 1, "fuse": "pyramid", "vae_tile": 1024}
        got = run(model=wan, vae=video_vae, image=image, seed=3, **settings, **prompts, **plan).args[0]
    torch.testing.assert_close(got, expected[:frames], rtol=0, atol=1e-4)
    assert got.shape == (frames, 48, 80, 3) and got.std() > 0.01
    assert frames == 1 or (got[1:] - got[:-1]).abs().mean() > 1e-3


def test_a_long_video_passes_its_vae_in_pieces(video_vae):
    """Each of 64 frames, 8 of them seen before; here to the end of the second."""
    from stillmotion.nodes.upscale import decode, encode, whole_frames

    assert [whole_frames(video_vae, n) for n in (1, 2, 5, 64, 97)] == [1, 5, 5, 65, 97]
    seen, frames = [], clip(97, 16, 24)
    for name in ("encode", "decode"):
        own = getattr(video_vae.first_stage_model, name)
        setattr(video_vae.first_stage_model, name, lambda x, own=own: seen.append(tuple(x.shape[2:])) or own(x))
    with torch.inference_mode():
        latents = encode(video_vae, frames, 1024)
        assert latents.shape == (1, 16, 25, 2, 3) and {shape[1:] for shape in seen} == {(16, 24)}
        assert len(seen) > 1 and max(shape[0] for shape in seen) <= 65
        seen.clear()
        assert decode(video_vae, latents, 1024).shape == frames.shape
        assert len(seen) > 1 and max(shape[0] for shape in seen) <= 16
        seen.clear()
        encode(video_vae, clip(5, 16, 24), 16)
        assert len(seen) > 1 and {shape[0] for shape in seen} == {5}, "tiles of wide frames"


def test_windows_that_cannot_be_are_refused_before_anything_runs(node, small_model):
    vae = Mean()
    with pytest.raises(ValueError, match="The overlap is 4 frames; windows of 4 frames allow 0 to 3"):
        node(small_model(), vae, clip(), overlap=4)
    assert not vae.calls


def test_several_clips_at_once_are_refused_before_anything_runs(node, small_model):
    model, vae = small_model(), Mean()
    model.set_attachments("stillmotion", (SimpleNamespace(frames_per_clip=3),))
    with pytest.raises(ValueError, match="here are 7 frames in clips of 3: set frames_per_clip of the STUNet Loader"):
        node(model, vae, clip())
    assert not vae.calls
