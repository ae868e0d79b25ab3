"""HiGen's release, converted, in both hosts: the numbers of the network that it was, written from its description."""

import pytest
import torch
from released_higen import Released, randomised
from stillmotion.networks.asked import NOTHING, Asked, Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.guidance import even_positions, resampled_columns, similarity_of
from stillmotion.networks.inflation import Attached, Inflation
from stillmotion.networks.motion_file import read_motion_file
from stillmotion.samplers.schedules import alphas_cumprod

WIDTHS, CLIPS, SIZE = (64, 128), 2, (4, 6)


def converted(folder, network, *options):
    """The folder with `release.pth` and what the command makes of it."""
    from stillmotion.trainer.cli import main

    torch.save({"state_dict": network.state_dict(), "step": 725000}, folder / "release.pth")
    release, motion = folder / "release.pth", folder / "motion.safetensors"
    assert main(["convert", "--input", str(release), "--output", str(motion), *map(str, options)]) == 0
    return folder


@pytest.fixture(scope="module")
def released():
    return randomised(Released(WIDTHS, units=1, tokens=4, layers=2))


@pytest.fixture(scope="module")
def files(released, tmp_path_factory):
    return converted(tmp_path_factory.mktemp("higen"), released)


@pytest.fixture
def model(files):
    """The host's MODEL of the image model's file, small as the host's detection of models would not have it."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    config = comfy.supported_models.SD20(
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": WIDTHS[0],
            "channel_mult": (1, 2),
            "num_res_blocks": [1, 1],
            "context_dim": 1024,
            "transformer_depth": [1, 0],
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 0, 0],
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "legacy": False,
            "dtype": torch.float32,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, device="cpu")
    tensors = comfy.utils.load_torch_file(str(files / "motion_unet.safetensors"))
    model.diffusion_model.load_state_dict(tensors, strict=True)
    return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


def text(seed, prompts=1):
    return torch.randn(prompts, 77, 1024, generator=torch.Generator().manual_seed(seed))


def asked_and_given(frames):
    """What two clips are asked, for the hosts and for the released network."""
    if not frames:  # pass 1: a still of nothing but its prompt
        return NOTHING, (torch.zeros(CLIPS, 4, *SIZE), torch.zeros(CLIPS, 1), torch.ones(CLIPS, 1, 32))
    prior, motion = torch.randn(CLIPS, 4, *SIZE), torch.randint(0, 900, (CLIPS, max(frames - 1, 1))).float()
    similarity = similarity_of(even_positions(torch.tensor([1.0, 0.3]), frames))
    similarity = similarity if frames > 1 else torch.ones(CLIPS, 1, 1)
    asked = Asked(prior=Given(prior), motion=Given(motion), similarity=Given(similarity))
    return asked, (prior, motion, resampled_columns(similarity, 32))


@torch.no_grad()
@pytest.mark.parametrize("frames", [0, 1, 2, 16, 32], ids=lambda frames: f"{frames} frames" if frames else "pass 1")
def test_both_hosts_predict_what_the_release_predicts(released, files, model, frames):
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.unet import run_unet
    from stillmotion.trainer.base.host import InflatedUNet
    from stillmotion.trainer.base.ldm_checkpoint import unet_from_ldm
    from stillmotion.trainer.base.tensors import read_tensors

    asked, given = asked_and_given(frames)
    frames = frames or 1
    x, t, prompts = torch.randn(CLIPS, 4, frames, *SIZE), torch.tensor([981, 421]), text(0, CLIPS)
    expected = released(x, t, prompts, *given).transpose(1, 2).flatten(0, 1)
    rows = x.transpose(1, 2).flatten(0, 1), t.repeat_interleave(frames), prompts.repeat_interleave(frames, dim=0)

    attached = [Attached(load_motion(files / "motion.safetensors").patcher.model, asked=asked)]
    in_comfyui = run_unet(model.model.diffusion_model, attached, Clip.of(frames), *rows, transformer_options={})
    info, tensors = read_motion_file(files / "motion.safetensors")
    inflation = Inflation(info.config, info.structure)
    inflation.load_state_dict(tensors)
    unet = unet_from_ldm(read_tensors(files / "motion_unet.safetensors"))
    in_training = InflatedUNet(unet, inflation)(*rows, Clip.of(frames), asked=asked)
    for found in (in_comfyui, in_training):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def ddim(predict, x, steps, scale):
    """DDIM of a network that predicts v = √ᾱ ε - √(1 - ᾱ) x₀, without noise, on every `1000 / steps`-th timestep."""
    signal = alphas_cumprod("scaled_linear", zero_snr=True).double()
    times = list(range(1000 - 1000 // steps + 1, 0, -1000 // steps))
    for t, then in zip(times, [*times[1:], None]):
        cond, uncond = predict(x, t)
        v = uncond + scale * (cond - uncond)
        a, b = signal[t].sqrt(), (1 - signal[t]).sqrt()
        clean, noise = a * x - b * v, a * v + b * x
        x = clean if then is None else signal[then].sqrt() * clean + (1 - signal[then]).sqrt() * noise
    return x


@torch.no_grad()
def test_a_still_of_nothing_asked_is_the_releases_first_pass(released, files, model, caplog):
    """Through MODEL, KSampler's plan and CFG: the sampled latent is that of the release's own loop."""
    import comfy.sample
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    motion = load_motion(files / "motion.safetensors")
    video = attach(model, motion, temporal=1.0, recurrence=1.0, queries=1.0)
    video = set_schedule(video, motion, from_file=True)
    noise, steps, scale, latent = torch.randn(1, 4, *SIZE), 5, 3.0, torch.zeros(1, 4, *SIZE)
    conditions = [[text(1), {}]], [[text(2), {}]]
    plan = "ddim", "ddim_uniform", *conditions
    sampled = comfy.sample.sample(video, noise, steps, scale, *plan, latent, disable_pbar=True, seed=0) * 0.18215
    assert "it sees 1 at once" not in caplog.text

    _, given = asked_and_given(0)
    given = [value[:1] for value in given]

    def predict(x, t):
        prompts = text(1), text(2)
        return [released(x[:, :, None].float(), torch.tensor([t]), p, *given)[:, :, 0].double() for p in prompts]

    first = alphas_cumprod("scaled_linear", zero_snr=True)[1000 - 1000 // steps + 1]
    expected = ddim(predict, (1 - first).sqrt() * noise.double(), steps, scale).float()
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
    still = comfy.sample.sample(model, noise, steps, scale, *plan, latent, disable_pbar=True, seed=0) * 0.18215
    assert (still - expected).abs().max() > 0.1 * expected.abs().max()


def test_the_hosts_own_loaders_take_both_forms_of_the_image_model(tmp_path):
    """The host knows a model of SD2.x by its finest level, 320 channels wide."""
    import comfy.sd
    from safetensors.torch import save_file
    from stillmotion.nodes.attach import attach
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.schedule import set_schedule

    network = Released((320, 320), units=1, tokens=4, layers=1).half()
    other = {"cond_stage_model.model.token_embedding.weight": torch.zeros(9, 1024)}
    other |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}
    save_file(other, tmp_path / "sd21.safetensors")
    converted(tmp_path, network)
    converted(
        tmp_path,
        network,
        "--overwrite",
        "--with",
        tmp_path / "sd21.safetensors",
        "--model",
        tmp_path / "whole.safetensors",
    )
    unet = comfy.sd.load_diffusion_model(str(tmp_path / "motion_unet.safetensors"))
    whole = {"output_vae": False, "output_clip": False}
    from_checkpoint = comfy.sd.load_checkpoint_guess_config(str(tmp_path / "whole.safetensors"), **whole)[0]
    motion = load_motion(tmp_path / "motion.safetensors")
    for model in (unet, from_checkpoint):
        assert type(model.model.model_config).__name__ == "SD20" and model.model.model_type.name == "EPS"
        weight = model.model.diffusion_model.input_blocks[2][0].op.weight
        assert torch.equal(weight.half(), network.input_blocks[2].op.weight)
        video = set_schedule(attach(model, motion, temporal=1, recurrence=1, queries=1), motion, from_file=True)
        assert video.get_model_object("model_sampling").sigma_max > 4000
