"""MG guidance in ComfyUI's own samplers: nothing at alpha 0, the pure function elsewhere, on images and on videos."""

import math

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.samplers.mitigating_gradient import Mitigation, mitigate, mitigate_latents
from stillmotion.samplers.schedules import flow_to_sigma

FRAMES = 5
OFF = {
    "cfg_early": 3.0,
    "cfg_late": 3.0,
    "cfg_switch": 0.3,
    "alpha": 0.0,
    "max_pull": 0.5,
    "mode": "one-sided",
    "resolution_independent": True,
    "start_percent": 0.0,
    "end_percent": 1.0,
}
ON = OFF | {"alpha": 40.0}
PLAN = {"seed": 7, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def text(seed, tokens=7, width=768, **options):
    return [[torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed)), options]]


PROMPTS = {"positive": text(1), "negative": text(2)}


def still(*shape, **others):
    """A LATENT of some content."""
    return {"samples": torch.randn(*shape, generator=torch.Generator().manual_seed(3)), **others}


@pytest.fixture
def clip():
    return still(FRAMES, 4, 8, 6)


@pytest.fixture
def sample(pack):
    """Runs the MG Guidance Sampler, with the arguments of KSampler's node where `PLAN` shall not hold."""

    def run(model, latent, guidance=ON, **others):
        node = pack["StillmotionMGGuidanceSampler"]
        return node.execute(model=model, latent_image=latent, **(PROMPTS | PLAN | guidance | others)).result[0]

    return run


def ksampler(model, latent, cfg=3.0, **others):
    import nodes

    return nodes.KSampler().sample(model=model, latent_image=latent, cfg=cfg, **(PROMPTS | PLAN | others))[0]


def roughness(latents, dim=0):
    return latents.diff(dim=dim).movedim(dim, 0).flatten(1).norm(dim=1).sum()


@pytest.mark.parametrize("denoise", [1.0, 0.6])
@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "euler_ancestral", "dpm_2", "ddim", "uni_pc"])
def test_at_alpha_zero_it_is_ksampler_bit_for_bit(small_model, sample, clip, sampler_name, denoise):
    model, plan = small_model(), {"sampler_name": sampler_name, "denoise": denoise}
    expected = ksampler(model, clip, **plan)["samples"]
    assert torch.equal(sample(model, clip, OFF, **plan)["samples"], expected)
    assert not torch.equal(sample(model, clip, ON, **plan)["samples"], expected)


def test_what_else_a_latent_holds_is_treated_as_by_ksampler(small_model, sample):
    mask = torch.zeros(FRAMES, 1, 64, 48)
    mask[:, :, 20:] = 1
    model, latent = small_model(), still(FRAMES, 4, 8, 6, noise_mask=mask, batch_index=[4, 0, 2, 1, 3])
    expected, got = ksampler(model, latent), sample(model, latent, OFF)
    assert torch.equal(got["samples"], expected["samples"])
    assert got.keys() == expected.keys() and got["batch_index"] is latent["batch_index"]
    smooth = sample(model, latent)["samples"]
    torch.testing.assert_close(smooth[:, :, :2], latent["samples"][:, :, :2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("denoise", [0.0, 1e-3])
def test_hardly_any_denoising_is_ksamplers_too(small_model, sample, clip, denoise):
    model = small_model()
    assert torch.equal(
        sample(model, clip, OFF, denoise=denoise)["samples"], ksampler(model, clip, denoise=denoise)["samples"]
    )


def test_an_edit_of_nothing_is_the_clip_and_an_edit_of_all_a_new_one(small_model, wan, sample, clip):
    """T6.4. Where a diffusion model begins there is still a little of the clip under the noise, as on every host."""
    model = small_model()
    assert torch.equal(sample(model, clip, denoise=0.0)["samples"], clip["samples"])
    edits = [sample(model, clip, OFF, denoise=strength)["samples"] for strength in (0.02, 0.1, 0.4, 1.0)]
    far = [(edit - clip["samples"]).norm().item() for edit in edits]
    assert far == sorted(far) and far[0] < 0.05 * far[-1]

    noise, most = torch.randn(FRAMES, 4, 8, 6), model.model.model_sampling.sigma_max.item()
    left = model.model.latent_format.scale_factor * clip["samples"] / math.sqrt(1 + most**2)
    new = sample(model, {"samples": torch.zeros(FRAMES, 4, 8, 6)}, OFF, noise=Given(noise + left))["samples"]
    edit = sample(model, clip, OFF, noise=Given(noise))["samples"]
    torch.testing.assert_close(edit, new, rtol=1e-3, atol=1e-3)

    video, empty = still(1, 16, FRAMES, 6, 8), {"samples": torch.zeros(1, 16, FRAMES, 6, 8)}
    assert torch.equal(*(sample(wan, latent, OFF, **VIDEO_PROMPTS)["samples"] for latent in (video, empty)))


def test_a_connected_noise_takes_the_place_of_the_seed(small_model, sample, clip):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model = small_model()
    expected = ksampler(model, clip, seed=3, sampler_name="euler_ancestral")["samples"]
    got = sample(model, clip, OFF, seed=99, noise=Noise_RandomNoise(3), sampler_name="euler_ancestral")
    assert torch.equal(got["samples"], expected)


def test_the_guider_in_comfyuis_own_sampler_is_the_same(small_model, pack, sample, clip):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    model = small_model()
    (guider,) = pack["StillmotionMGGuider"].execute(model=model, **PROMPTS, **ON).result
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    sampler = comfy.samplers.sampler_object("euler")
    got, _ = SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, sampler, sigmas, clip).result
    assert torch.equal(got["samples"], sample(model, clip)["samples"])
    again, _ = SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, sampler, sigmas, clip).result
    assert torch.equal(again["samples"], got["samples"])


MODES = {
    "one-sided": (ON, Mitigation()),
    "symmetric": (ON | {"mode": "symmetric"}, Mitigation(symmetric=True)),
    "motion boost": (ON | {"mode": "motion boost"}, Mitigation(alpha=-40, symmetric=True)),
    "as printed": (ON | {"max_pull": 10.0, "resolution_independent": False}, Mitigation(40, math.inf, ref_dim=None)),
    "strong but limited": (ON | {"alpha": 200.0, "max_pull": 0.05}, Mitigation(200, 0.05)),
}


@pytest.mark.parametrize("mode", MODES)
def test_one_step_is_the_pure_function_on_what_the_host_predicts(small_model, sample, clip, mode):
    model, (guidance, how) = small_model(), MODES[mode]
    scale, sigma = model.model.latent_format.scale_factor, model.model.model_sampling.sigma_max.item()
    denoised = scale * ksampler(model, clip, steps=1)["samples"]
    got = scale * sample(model, clip, guidance, steps=1)["samples"]
    expected = mitigate_latents(denoised, sigma, how)
    assert (expected - denoised).abs().mean() > 1e-3 * denoised.abs().mean()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_it_acts_within_its_range_only(small_model, sample, clip):
    model = small_model()
    off = ksampler(model, clip)["samples"]
    before, after = ({"start_percent": 0.0, "end_percent": 0.0}, {"start_percent": 1.0, "end_percent": 1.0})
    for nowhere in (before, after):
        assert torch.equal(sample(model, clip, ON | nowhere)["samples"], off)
    early, late = ({"end_percent": 0.4}, {"start_percent": 0.4})
    runs = [sample(model, clip, ON | part)["samples"] for part in ({}, early, late)]
    assert all(not torch.equal(a, b) for a, b in [runs[:2], runs[1:], runs[::2]])


def test_a_flow_of_which_no_part_is_in_the_range_is_left_alone(wan, sample):
    """It begins at the very noise level that the host gives for a share of 0."""
    video = still(1, 16, FRAMES, 6, 8)
    off = sample(wan, video, OFF, **VIDEO_PROMPTS)["samples"]
    for nowhere in ({"end_percent": 0.0}, {"start_percent": 1.0}):
        assert torch.equal(sample(wan, video, ON | nowhere, **VIDEO_PROMPTS)["samples"], off)
    assert not torch.equal(sample(wan, video, ON | {"end_percent": 0.01}, **VIDEO_PROMPTS)["samples"], off)


def seen_by_hooks(model, hook):
    """What other packs' hooks are told at each step of the sampler."""
    calls = []

    def note(args):
        calls.append((round(args["sigma"][0].item(), 3), args["cond_scale"]))
        return args["denoised"] if "denoised" in args else args["cond"]

    model = model.clone()
    getattr(model, hook)(note)
    return model, calls


@pytest.mark.parametrize("hook", ["set_model_sampler_post_cfg_function", "set_model_sampler_cfg_function"])
def test_hooks_of_other_packs_see_each_step_with_its_scale(small_model, sample, clip, hook):
    model, calls = seen_by_hooks(small_model(), hook)
    sample(model, clip, ON | {"cfg_early": 12.0, "cfg_late": 7.5}, steps=10, scheduler="simple")
    assert len(calls) == 10
    assert [scale for _, scale in calls] == [12.0 if sigma > 3.321 else 7.5 for sigma, _ in calls]
    assert {scale for _, scale in calls} == {12.0, 7.5}


def test_a_post_cfg_hook_acts_before_the_frames_are_pulled_together(small_model, sample, clip):
    model = small_model()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + torch.arange(5.0).view(5, 1, 1, 1))
    scale, sigma = model.model.latent_format.scale_factor, model.model.model_sampling.sigma_max.item()
    off, on = (scale * sample(model, clip, guidance, steps=1)["samples"] for guidance in (OFF, ON))
    torch.testing.assert_close(on, mitigate_latents(off, sigma, Mitigation()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("disable", "rows"), [(False, FRAMES), (True, 2 * FRAMES)])
def test_at_scale_one_the_host_decides_whether_the_negative_prompt_runs(small_model, sample, clip, disable, rows):
    model, seen = small_model(), []
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=disable)
    model.set_model_unet_function_wrapper(
        lambda apply, args: seen.append(len(args["input"])) or apply(args["input"], args["timestep"], **args["c"])
    )
    sample(model, clip, ON | {"cfg_early": 1.0, "cfg_late": 1.0}, steps=1)
    assert sum(seen) == rows


def test_core_context_windows_do_not_hide_frames(small_model, sample):
    import comfy.context_windows as core

    model, clip = small_model(), still(8, 4, 8, 6)
    model.model_options["context_handler"] = core.IndexListContextHandler(
        core.get_matching_context_schedule("standard_static"),
        core.get_matching_fuse_method("flat"),
        context_length=4,
        context_overlap=0,
        dim=0,
    )
    scale, sigma = model.model.latent_format.scale_factor, model.model.model_sampling.sigma_max.item()
    off, on = (scale * sample(model, clip, guidance, steps=1)["samples"] for guidance in (OFF, ON))
    torch.testing.assert_close(on, mitigate_latents(off, sigma, Mitigation()), rtol=1e-4, atol=1e-4)


@pytest.fixture
def in_clips(tmp_path):
    """A MODEL whose batches hold clips of FRAMES frames, as the STUNet Loader makes it."""
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    def make(model):
        config, structure = InflationConfig(temporal=Temporal()), structure_of(model)
        inflation = Inflation(config, structure)
        for parameter in inflation.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        path = tmp_path / "motion.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure, frames=FRAMES))
        return attach(model, load_motion(path), temporal=1.0, recurrence=1.0, queries=1.0, frames_per_clip=FRAMES)

    return make


def test_two_clips_in_a_batch_are_two_runs(small_model, sample, in_clips):
    model = in_clips(small_model())
    both = still(2 * FRAMES, 4, 8, 6)
    noise = torch.randn(2 * FRAMES, 4, 8, 6)
    got = sample(model, both, noise=Given(noise))["samples"]
    parts = [
        sample(model, {"samples": samples}, noise=Given(noise))["samples"]
        for samples, noise in zip(both["samples"].split(FRAMES), noise.split(FRAMES))
    ]
    torch.testing.assert_close(got, torch.cat(parts), rtol=1e-4, atol=1e-4)


class Given:
    """A NOISE of given numbers."""

    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise.clone()


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_are_told_and_left_alone(small_model, sample, frames, caplog):
    model, clip = small_model(), still(frames, 4, 8, 6)
    assert torch.equal(sample(model, clip)["samples"], ksampler(model, clip)["samples"])
    assert f"does nothing for clips of {frames} frames" in caplog.text


def test_cancelling_leaves_the_next_run_as_it_was(small_model, sample, clip):
    import comfy.model_management

    model = small_model()
    whole, seen = sample(model, clip)["samples"], []

    def interrupt(args):
        seen.append(args["sigma"])
        comfy.model_management.interrupt_current_processing(len(seen) == 2)
        return args["denoised"]

    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(broken, clip)
    assert len(seen) == 2
    assert torch.equal(sample(model, clip)["samples"], whole)


def test_progress_and_previews_are_those_of_the_host(small_model, sample, clip, monkeypatch):
    import latent_preview

    class Previewer(latent_preview.LatentPreviewer):
        def decode_latent_to_preview_image(self, preview_format, x0):
            return preview_format, tuple(x0.shape)

    told = []
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *args: Previewer())
    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", lambda bar, *args: told.append(args))
    sample(small_model(), clip)
    assert told == [(step, 3, ("JPEG", (FRAMES, 4, 8, 6))) for step in (1, 2, 3)]


LTX = {
    "cross_attention_dim": 24,
    "audio_cross_attention_dim": 16,
    "attention_head_dim": 12,
    "audio_attention_head_dim": 8,
    "num_attention_heads": 2,
    "audio_num_attention_heads": 2,
    "caption_channels": 10,
    "num_layers": 1,
}


@pytest.fixture
def ltx(video_model):
    return video_model("LTXAV", "LTXAV", image_model="ltxav", **LTX)


VIDEO_PROMPTS = {"positive": text(1, 8, 16), "negative": text(2, 8, 16), "scheduler": "simple"}
SOUND_PROMPTS = {"positive": text(1, 8, 20), "negative": text(2, 8, 20), "scheduler": "simple", "steps": 1}


@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_a_video_model_at_alpha_zero_is_ksamplers_and_smoother_above(wan, sample, denoise):
    video, plan = still(2, 16, FRAMES, 6, 8), VIDEO_PROMPTS | {"denoise": denoise, "steps": 5}
    off = sample(wan, video, OFF, **plan)["samples"]
    assert torch.equal(off, ksampler(wan, video, **plan)["samples"])
    on, more = (sample(wan, video, ON | {"alpha": a}, **plan)["samples"] for a in (0.02, 40.0))
    assert roughness(more, dim=2) < roughness(on, dim=2) < roughness(off, dim=2)
    assert roughness(more, dim=2) < 0.95 * roughness(off, dim=2)


def test_a_step_of_a_flow_is_the_pure_function_at_its_noise_over_signal(wan, sample):
    video, plan = still(2, 16, FRAMES, 6, 8), VIDEO_PROMPTS | {"steps": 1, "denoise": 0.5}
    guidance = ON | {"alpha": 1.0, "max_pull": 0.9}
    off, on = (sample(wan, video, g, **plan)["samples"] for g in (OFF, guidance))
    denoised, got = (wan.model.process_latent_in(x) for x in (off, on))
    time = wan.model.model_sampling.sigmas[500 - 1].item()
    expected = mitigate(denoised.movedim(2, 1), flow_to_sigma(time), Mitigation(1.0, 0.9)).movedim(1, 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    limited = mitigate(denoised.movedim(2, 1), 1e6, Mitigation(1.0, 0.9)).movedim(1, 2)
    assert (expected - denoised).norm() < 0.9 * (limited - denoised).norm(), "the limit hides the sigma"


def test_a_video_with_sound_keeps_the_sound_out_of_it(ltx, sample):
    from comfy.nested_tensor import NestedTensor

    latent = {"samples": NestedTensor([torch.zeros(3, 128, FRAMES, 2, 3), torch.zeros(3, 8, 7, 16)])}
    expected = ksampler(ltx, latent, **SOUND_PROMPTS)["samples"].unbind()
    off, on = (sample(ltx, latent, g, **SOUND_PROMPTS)["samples"].unbind() for g in (OFF, ON))
    assert torch.equal(off[0], expected[0]) and torch.equal(off[1], expected[1])
    assert torch.equal(on[1], off[1])
    smooth = mitigate_latents(off[0], flow_to_sigma(1.0), Mitigation())
    torch.testing.assert_close(on[0], smooth, rtol=1e-4, atol=1e-4)
    assert roughness(on[0], dim=2) < 0.8 * roughness(off[0], dim=2)


@pytest.mark.parametrize("shape", [(1, 64, 32), (2, 3, 4, 5, 6, 7)])
def test_latents_without_frames_are_refused(small_model, pack, shape):
    (guider,) = pack["StillmotionMGGuider"].execute(model=small_model(), **PROMPTS, **ON).result
    with pytest.raises(ValueError, match="MG guidance compares frames, and latents of shape"):
        guider.sample(torch.zeros(shape), torch.zeros(shape), None, torch.ones(2))


def test_a_latent_of_a_video_model_is_refused_by_one_of_pictures(small_model, sample):
    with pytest.raises(ValueError, match=r"The latent is a video model's, \(1, 4, 5, 8, 6\), and this model takes"):
        sample(small_model(), still(1, 4, FRAMES, 8, 6))


def test_sound_without_a_video_is_refused(small_model, pack):
    from comfy.nested_tensor import NestedTensor

    (guider,) = pack["StillmotionMGGuider"].execute(model=small_model(), **PROMPTS, **ON).result
    sound = NestedTensor([torch.zeros(1, 8, 7, 16), torch.zeros(1, 8, 7, 16)])
    with pytest.raises(ValueError, match=r"latents of shape \(1, 8, 7, 16\), \(1, 8, 7, 16\) have none"):
        guider.sample(sound, sound, None, torch.ones(2))


@pytest.mark.parametrize("masks", [0, 3, 2 * FRAMES])
def test_masks_that_do_not_fit_the_frames_are_refused(small_model, sample, masks):
    latent = still(FRAMES, 4, 8, 6, noise_mask=torch.ones(masks, 1, 64, 48))
    with pytest.raises(ValueError, match=f"has {FRAMES} frames and {masks} noise masks; give one mask, or one per"):
        sample(small_model(), latent)


@pytest.mark.parametrize("shape", [(64, 48), (1, 64, 48), (1, 1, 64, 48), (FRAMES, 64, 48)])
def test_masks_of_every_shape_that_the_host_takes_are_taken(small_model, sample, shape):
    model, latent = small_model(), still(FRAMES, 4, 8, 6, noise_mask=torch.rand(shape))
    assert torch.equal(sample(model, latent, OFF)["samples"], ksampler(model, latent)["samples"])


def test_a_boost_without_a_limit_is_refused(small_model, sample, clip):
    with pytest.raises(ValueError, match="motion boost"):
        sample(small_model(), clip, ON | {"mode": "motion boost", "max_pull": 10.0})
