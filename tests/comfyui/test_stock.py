"""MODELs with nothing attached, sampled through our loop: what the host makes of them alone, bit for bit."""

from importlib import import_module

import pytest
import torch

FRAMES = 4
KEY = "diffusion_model.output_blocks.2.1.transformer_blocks.0.attn1.to_q.weight"


def condition(seed, **options):
    text = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, options]]


def masked(seed):
    """A mask that covers everything forces a call of its own."""
    return condition(seed, mask=torch.ones(1, 64, 48), mask_strength=1.0)


def noise(frames=FRAMES, seed=0):
    return torch.randn(frames, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def sample(model, noise, positive=None, steps=2):
    import comfy.sample

    torch.manual_seed(0)  # some nodes draw
    latent, positive = torch.zeros_like(noise), positive or condition(1)
    return comfy.sample.sample(
        model, noise, steps, 3.0, "euler", "normal", positive, condition(2), latent, disable_pbar=True, seed=0
    )


def wrapped(model):
    """A MODEL that goes through our loop with nothing attached."""
    from stillmotion.nodes import attach

    model = model.clone()
    model.set_attachments(attach.KEY, ())
    attach._wrap(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positive", [condition, masked], ids=["together", "apart"])
@pytest.mark.parametrize("lora", [False, True])
def test_sampling_is_the_hosts(small_model, positive, lora, dtype):
    """One clip, and two in a batch."""
    model = small_model(dtype=dtype)
    if lora:
        model.add_patches({KEY: ("diff", (torch.randn(32, 32),))}, 1.0)
    for given in (noise(seed=1), torch.cat([noise(seed=0), noise(seed=1)])):
        stock = sample(model, given, positive(1))
        assert torch.equal(sample(wrapped(model), given, positive(1)), stock)


def test_two_clips_in_a_batch_are_two_runs(small_model):
    model = wrapped(small_model())
    both = torch.cat([noise(seed=0), noise(seed=1)])
    runs = torch.cat([sample(model, clip) for clip in both.split(FRAMES)])
    torch.testing.assert_close(sample(model, both), runs, rtol=1e-5, atol=1e-4)


class Hinted(torch.nn.Module):
    """What a ControlNet runs: residuals at every depth, each frame's from its own hint."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x, hint, timesteps, context):
        seen = hint[:, :1, ::8, ::8].to(x)
        fine, coarse = seen.expand(-1, 32, -1, -1), seen[:, :, ::2, ::2].expand(-1, 64, -1, -1)
        return {"middle": [1.0 * coarse], "output": [0.5 * fine, 0.3 * fine, 0.2 * coarse[:, :32], 0.1 * coarse]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clips", [1, 2])
def test_a_controlnet_with_a_hint_for_each_frame_acts_as_in_the_hosts(small_model, caplog, dtype, clips):
    import comfy.controlnet

    def guided():
        net = comfy.controlnet.ControlNet(Hinted(dtype), load_device=torch.device("cpu"))
        hints = torch.rand(clips * FRAMES, 3, 64, 48, generator=torch.Generator().manual_seed(3))
        return condition(1, control=net.set_cond_hint(hints), control_apply_to_uncond=True)

    model, given = small_model(dtype=dtype), noise(clips * FRAMES)
    stock = sample(model, given, guided())
    assert torch.equal(sample(wrapped(model), given, guided()), stock)
    assert (stock - sample(model, given)).abs().amax((1, 2, 3)).min() > 0.01
    assert "control could not be applied" not in caplog.text


NODES = {
    "nodes_freelunch.FreeU": (1.1, 1.2, 0.9, 0.2),
    "nodes_freelunch.FreeU_V2": (1.3, 1.4, 0.9, 0.2),
    "nodes_hypertile.HyperTile": (32, 1, 0, False),
    "nodes_model_downscale.PatchModelAddDownscale": (2, 2.0, 0.0, 0.6, True, "bicubic", "bicubic"),
    "nodes_pag.PerturbedAttentionGuidance": (3.0,),
    "nodes_sag.SelfAttentionGuidance": (0.5, 2.0),
    "nodes_tomesd.TomePatchModel": (0.3,),
    "nodes_easycache.EasyCacheNode": (1e9, 0.0, 1.0, False),
}


@pytest.mark.parametrize("name", NODES)
def test_the_hosts_own_nodes_act_as_in_its_forward(small_model, name):
    module, node = name.split(".")
    model = small_model()
    made = getattr(import_module(f"comfy_extras.{module}"), node).execute(model, *NODES[name])
    patched = getattr(made, "args", made)[0]
    stock = sample(patched, noise(), steps=6)
    assert torch.equal(sample(wrapped(patched), noise(), steps=6), stock)
    assert not torch.equal(stock, sample(model, noise(), steps=6))


def test_a_fresh_motion_file_is_the_image_model(small_model, tmp_path):
    from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
    from stillmotion.networks.inflation import Inflation
    from stillmotion.networks.motion_file import MotionInfo, write_motion_file
    from stillmotion.nodes.attach import attach, structure_of
    from stillmotion.nodes.motion import load_motion

    model = small_model()
    config, structure = InflationConfig(Temporal(), CrossFrames(), Recurrence(), Queries(4)), structure_of(model)
    path = tmp_path / "fresh.safetensors"
    write_motion_file(path, Inflation(config, structure).state_dict(), MotionInfo(config, structure))
    fresh = attach(model, load_motion(path), temporal=1.0, recurrence=1.0, queries=1.0)
    assert torch.equal(sample(fresh, noise()), sample(model, noise()))
