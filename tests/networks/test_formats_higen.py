"""HiGen's released network: every tensor finds its place and comes back; the full-size list is the published one."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from released_higen import Released, randomised
from stillmotion.networks.config import Appearance, Motion, Prior, Resampler
from stillmotion.networks.formats.files import from_tensors
from stillmotion.networks.formats.higen import from_higen, to_higen
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import read_motion_file, write_motion_file
from stillmotion.networks.sites import Level, structure_from_diffusers
from stillmotion.trainer.base.ldm_checkpoint import unet_to_ldm

PROJ_IN = "input_blocks.1.2.proj_in.weight"


@pytest.fixture(scope="module")
def released():
    return randomised(Released((64, 128), units=1, tokens=4, layers=3)).state_dict()


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def equal(a, b):
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_the_whole_release_is_stable_diffusion_2_1_and_849_tensors_more():
    """The counts are those of the published network: 682 tensors of the image model, the 4 of its time embedding."""
    with torch.device("meta"):
        released = Released().state_dict()
        heads = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
        image_model = UNet2DConditionModel(**heads, use_linear_projection=True)
    assert len(released) == 1535 and sum(t.numel() for t in released.values()) == pytest.approx(1483.2e6, rel=1e-5)
    unet, info, motion = from_higen(released)
    assert shapes(unet) == shapes(unet_to_ldm(image_model)) and len(unet) == 682 + 4
    assert info.structure == structure_from_diffusers(shapes(image_model.state_dict()))
    with torch.device("meta"):
        described = Inflation(info.config, info.structure)
    # three matrices of each of two attentions are one in 17 transformers
    assert len(motion) == 849 - 2 * 2 * 17
    assert shapes(motion) == shapes(described.state_dict())
    assert shapes(to_higen(unet, info, motion)) == shapes(released)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_comes_back_exact(released, tmp_path, dtype):
    theirs = {name: tensor.to(dtype) for name, tensor in released.items()}
    unet, info, motion = from_higen(theirs)
    write_motion_file(tmp_path / "motion.safetensors", motion, info)
    assert equal(to_higen(unet, *read_motion_file(tmp_path / "motion.safetensors")), theirs)


def test_the_description_says_what_no_host_can_guess(released):
    _, info, _ = from_higen(released)
    assert (info.schedule, info.prediction, info.zero_snr) == ("scaled_linear", "v_prediction", True)
    assert (info.frames, info.fps, info.width, info.height) == (32, 8, 448, 256)
    assert info.family == "sd21" and info.structure.levels == (Level(64, (1,), (1, 1)), Level(128, (0,), (0, 0)))
    config = info.config
    assert config.temporal.norm_scope == "clip" and config.temporal.middle
    assert config.prior == Prior("zero") and config.motion == Motion(order="sin_then_interp", absent="zero")
    assert config.appearance == Appearance(32, "DINO", "zero") and config.resampler == Resampler(4, 256, 3, 8)


def test_another_inflation_cannot_be_written_as_the_release(released):
    unet, info, motion = from_higen(released)
    for part in ({"motion": Motion()}, {"prior": None}, {"appearance": None}, {"resampler": None}):
        other = replace(info, config=replace(info.config, **part))
        with pytest.raises(ValueError, match="other parts than HiGen's release"):
            to_higen(unet, other, motion)


def without(name):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(name)}


def halved(name):
    return lambda tensors: tensors | {name: tensors[name][:1]}


DAMAGE = {
    "no tokens": (without("context_embedding.tokens"), "it lacks context_embedding.tokens"),
    "no appearance": (without("asim_embedding"), "it lacks asim_embedding.0.weight"),
    "no prior": (without("img_embedding"), "it lacks 2 of HiGen's tensors, first img_embedding.bias"),
    "no convolution": (without("middle_block.3.temopral_conv.conv4"), "lacks 4 of .* first middle_block.3.temopral"),
    "a shape": (halved(PROJ_IN), rf"holds {PROJ_IN} with shape \(1, 64, 1\); it should be \(64, 64, 1\)"),
    "a flat prior": (halved("img_embedding.weight"), r"img_embedding.weight with shape \(1, 4, 3, 3\); it should be"),
    "a number for tokens": (
        lambda t: t | {"context_embedding.tokens": torch.tensor(1.0)},
        r"context_embedding.tokens with shape \(\), not of 3 dimensions",
    ),
    "a number for a layer": (
        lambda t: t | {"input_blocks.1.0.out_layers.3.weight": torch.tensor(1.0)},
        "not a Stable Diffusion U-Net",
    ),
    "types": (
        lambda t: t | {(n := "middle_block.2.transformer_blocks.0.attn1.to_k.weight"): t[n].half()},
        "attn1.to_q.weight and middle_block.2.transformer_blocks.0.attn1.to_k.weight in different types of numbers",
    ),
    "no U-Net": (without(("input_blocks", "middle_block", "output_blocks")), "not a Stable Diffusion U-Net"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(released, kind):
    damage, sentence = DAMAGE[kind]
    with pytest.raises(ValueError, match=sentence):
        from_higen(damage(released))


def test_where_motion_modules_are_wanted_it_is_named_and_so_are_its_relatives(released):
    with pytest.raises(ValueError, match="is HiGen's release, .* convert` makes two files of it"):
        from_tensors(released)
    own = ("img_embedding", "msim_embedding", "asim_embedding", "context_embedding")
    with pytest.raises(ValueError, match="a network of VGen's .I2VGen-XL, for example. other than HiGen's"):
        from_tensors(without(own)(released))
