"""One motion file, the same base weights, both hosts, the same input: the same output."""

import copy
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from stillmotion.networks.asked import NOTHING, Asked, Given
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    Appearance,
    Condition,
    CrossFrames,
    InflationConfig,
    Mapping,
    Motion,
    Prior,
    Queries,
    Recurrence,
    Resampler,
    Resampling,
    Temporal,
    TemporalLora,
    Tokens,
)
from stillmotion.networks.inflation import Attached, Inflation
from stillmotion.networks.motion_file import MotionInfo, write_motion_file
from stillmotion.networks.motion_info import Over
from stillmotion.networks.presets import PRESETS
from stillmotion.networks.sites import structure_from_ldm
from stillmotion.networks.tensor_file import hash_of

CONFIGS = {
    "temporal": InflationConfig(temporal=Temporal()),
    "temporal over the clip, with middle": InflationConfig(temporal=Temporal(norm_scope="clip", middle=True)),
    "frame_attention": InflationConfig(frame_attention=CrossFrames()),
    "gated scan": InflationConfig(recurrence=Recurrence()),
    "paper rnn": InflationConfig(recurrence=Recurrence("paper_rnn")),
    "query lora": InflationConfig(queries=Queries(4)),
    "query matrices": InflationConfig(queries=Queries(None)),
    "tconv": InflationConfig(temporal=Temporal(levels=(("convolution",),), middle=True)),
    "ttrans": InflationConfig(temporal=Temporal(levels=(("transformer",),), middle=True)),
    "lumiere's blocks": InflationConfig(temporal=Temporal(levels=(("factorised",), ("stacked",)), middle=True)),
    "resampling": InflationConfig(resampling=Resampling((0,))),
    "mapping": InflationConfig(mapping=Mapping()),
    "mapping over pixels too": InflationConfig(mapping=Mapping(kernel=3)),
    "tokens": InflationConfig(tokens=Tokens(frames=5)),
    "prior": InflationConfig(prior=Prior()),
    "motion": InflationConfig(motion=Motion()),
    "appearance": InflationConfig(appearance=Appearance(frames=8)),
    "condition": InflationConfig(condition=Condition()),
    "condition of an inpainting model": InflationConfig(condition=Condition("generated", "vae_grey")),
    "condition where frames are halved": InflationConfig(resampling=Resampling((0,)), condition=Condition()),
    "resampler": InflationConfig(resampler=Resampler(tokens=4, width=64)),
    "higen": InflationConfig(
        Temporal(levels=(("convolution", "transformer"),), middle=True),
        prior=Prior(),
        motion=Motion(),
        appearance=Appearance(frames=8),
    ),
    "higen's release": InflationConfig(
        Temporal(levels=(("convolution", "transformer"),), middle=True, norm_scope="clip"),
        prior=Prior("zero"),
        motion=Motion(order="sin_then_interp", absent="zero"),
        appearance=Appearance(frames=32, absent="zero"),
        resampler=Resampler(tokens=4, width=64),
    ),
    "all": InflationConfig(
        Temporal(levels=(("attention", "convolution", "factorised"), ("stacked", "transformer")), middle=True),
        *(CrossFrames(), Recurrence(), Queries(4), Resampling((0,)), Mapping(), Tokens(frames=5)),
        *(Prior(), Motion(), Appearance(frames=8), Resampler(tokens=4, width=64), Condition()),
    ),
}


def same_unet_in_diffusers(unet, family):
    from diffusers import UNet2DConditionModel
    from stillmotion.trainer.base.ldm_names import layer_names, rename

    tensors = unet.state_dict()
    structure = structure_from_ldm({n: tuple(t.shape) for n, t in tensors.items()})
    attended = ["CrossAttn" * bool(level.down[0]) for level in structure.levels]
    config = {
        "block_out_channels": [level.width for level in structure.levels],
        "layers_per_block": 1,
        "down_block_types": [f"{kind}DownBlock2D" for kind in attended],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(attended)],
        "cross_attention_dim": structure.context,
        "attention_head_dim": 8 if family == "sd15" else (2, 4),
        "use_linear_projection": family != "sd15",
    }
    if family == "sdxl":
        config |= {"transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time"}
        config |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
    other = UNet2DConditionModel(**config)
    other.load_state_dict(rename(tensors, layer_names(structure)))
    return other.eval(), structure


def trained(config, structure):
    """As if it had been trained: nothing is zero any more."""
    inflation = Inflation(config, structure)
    for name, parameter in inflation.named_parameters():
        # six layers in a row, as wide as the text, which would blow up what goes through, and its rounding
        std = 2 / structure.context**0.5 if name.startswith("text.tokens.") else 0.1
        torch.nn.init.normal_(parameter, mean=float("gamma" in name), std=std)
    return inflation.requires_grad_(False)


def in_comfyui(unet, path, x, timesteps, context, y, frames, asked=NOTHING):
    """The wrappers' work by hand: queries merged into the weights, the rest attached to the loop."""
    from stillmotion.nodes.attach import _add_queries
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.unet import run_unet

    motion, model = load_motion(path), FakeModel(unet)
    _add_queries(model, motion.queries, 1.0)
    attached = [Attached(motion.patcher.model, asked=asked)] if motion.patcher else []
    with model.patched():
        return run_unet(unet, attached, Clip.of(frames), x, timesteps, context, y, transformer_options={})


class FakeModel:
    """A MODEL around a bare U-Net with motion files on it, with the host's own ModelPatcher at its core."""

    def __init__(self, unet, *motions):
        import comfy.model_patcher

        holder = torch.nn.Module()
        holder.diffusion_model = unet
        self.patcher = comfy.model_patcher.ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))
        self.motions, self.patchers = motions, [motion.patcher for motion in motions]

    def get_attachment(self, key):
        return [SimpleNamespace(motion=motion) for motion in self.motions]

    def get_additional_models_with_key(self, key):
        return self.patchers

    def set_additional_models(self, key, patchers):
        self.patchers = patchers

    def add_patches(self, patches, strength):
        return self.patcher.add_patches(patches, strength)

    def patched(self):
        return self.patcher.use_ejected() if not self.patcher.patches else Patched(self.patcher)


class Patched:
    def __init__(self, patcher):
        self.patcher = patcher

    def __enter__(self):
        self.patcher.patch_model(torch.device("cpu"))

    def __exit__(self, *error):
        self.patcher.unpatch_model(torch.device("cpu"))


def asked_of(frames, size=(6, 10)):
    """Another still, motion, appearance and known pixels for each of two clips, the second of which goes without one
    of them."""
    known = (torch.rand(2, frames, 1, *size) > 0.5).float()
    similarity = 1 - torch.rand(2, frames, frames)
    only_first = torch.tensor([1.0, 0.0])
    return Asked(
        prior=Given(torch.randn(2, 4, *size)),
        motion=Given(torch.randint(0, 1000, (2, max(frames - 1, 1))).float(), only_first),
        similarity=Given((similarity + similarity.mT) / 2),
        condition=Given(torch.cat([torch.randn(2, frames, 4, *size) * known, known], 2)),
    )


ONLY_OF_CLIPS = {"gated scan", "paper rnn", "tconv", "ttrans", "prior", "motion", "appearance", "higen"}
"""Parts that leave a clip of one frame as it is."""


FRAMES = 1, 2, 9
"""None, the fewest, and a number that is odd, and larger than files here are made for."""


@pytest.fixture(scope="module")
def families(small_unet):
    """By family: a U-Net, the same in diffusers, its structure, and inputs of each length with what a still model
    makes of them; at the end the U-Net is as it was."""
    from stillmotion.trainer.base.host import InflatedUNet

    made, before = {}, {}

    def of(family):
        if family in made:
            return made[family]
        unet = small_unet(family)
        other, structure = same_unet_in_diffusers(unet, family)
        still, by_frames = InflatedUNet(copy.deepcopy(other)), {}
        for frames in FRAMES:
            *given, added, y = inputs(other, structure, frames)
            by_frames[frames] = given, added, y, asked_of(frames), still(*given, Clip.of(frames), added)
        made[family] = unet, other, structure, by_frames
        before[family] = copy.deepcopy(unet.state_dict())
        return made[family]

    yield of
    for family, tensors in before.items():
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in made[family][0].state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize("name", CONFIGS)
def test_both_hosts_agree(families, tmp_path, name, family):
    from stillmotion.trainer.base.host import InflatedUNet

    unet, other, structure, by_frames = families(family)
    config, path = CONFIGS[name], tmp_path / "motion.safetensors"
    inflation = trained(config, structure)
    write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure))
    video = InflatedUNet(copy.deepcopy(other), inflation)
    for frames, (given, added, y, asked, still) in by_frames.items():
        theirs = video(*given, Clip.of(frames), added, asked)
        ours = in_comfyui(unet, path, *given, y, frames, asked)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        change = (theirs - still).abs().max()
        assert change == 0 if frames == 1 and name in ONLY_OF_CLIPS else change > 1e-3


GROUNDS = {
    "AnimateDiff": InflationConfig(temporal=Temporal(middle=True)),
    "MotionAdapter": InflationConfig(temporal=Temporal(norm_scope="clip")),
    "space-time": InflationConfig(
        Temporal(levels=(("factorised",), ("stacked",)), middle=True), resampling=Resampling((0,))
    ),
    "few-shot": InflationConfig(frame_attention=CrossFrames(), recurrence=Recurrence(), queries=Queries(3)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", GROUNDS)
def test_both_hosts_agree_on_a_motion_that_was_learnt_on_top_of_another(small_unet, tmp_path, name, caplog):
    from stillmotion.nodes.attach import _add_queries
    from stillmotion.nodes.motion import load_motion
    from stillmotion.nodes.motion_lora import add_temporal_lora
    from stillmotion.nodes.unet import run_unet
    from stillmotion.trainer.base.host import InflatedUNet

    unet, frames = small_unet(), 5
    other, structure = same_unet_in_diffusers(unet, "sd15")
    ground = trained(GROUNDS[name], structure)
    lora = TemporalLora.on(GROUNDS[name], 2)
    learnt = trained(InflationConfig(recurrence=Recurrence(), queries=Queries(4), temporal_lora=lora), structure)
    over = Over("ground.safetensors", hash_of(ground.state_dict()), "sd15")
    files = {"ground": (ground, None), "learnt": (learnt, over)}
    for file, (inflation, below) in files.items():
        info = MotionInfo(inflation.config, structure, over=below)
        write_motion_file(tmp_path / f"{file}.safetensors", inflation.state_dict(), info)
    given = inputs(other, structure, frames)[:3]
    alone = InflatedUNet(copy.deepcopy(other), copy.deepcopy(ground))(*given, Clip.of(frames))
    theirs = InflatedUNet(other, learnt, ground=ground)(*given, Clip.of(frames))

    motions = [load_motion(tmp_path / f"{file}.safetensors") for file in files]
    model = FakeModel(unet, motions[0])
    for motion in motions:
        _add_queries(model, motion.queries, 1.0)
    add_temporal_lora(model, motions[1], 1.0)
    attached = [Attached(motion.patcher.model) for motion in motions]
    with Patched(model.patcher), Patched(model.patchers[0]):
        ours = run_unet(unet, attached, Clip.of(frames), *given, None, transformer_options={})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (theirs - alone).abs().max() > 1e-2 and "learnt on top" not in caplog.text


PRESET_WIDTHS = (32, 32, 64)


@pytest.fixture(scope="module")
def three_levels(small_unet):
    """A U-Net, the same in diffusers, and its structure."""
    torch.manual_seed(0)
    unet = small_unet(widths=PRESET_WIDTHS)
    return unet, *same_unet_in_diffusers(unet, "sd15")


@torch.no_grad()
@pytest.mark.parametrize("name, frames", [*product(PRESETS, (1, 8, 17)), ("lumiere", 80)])
def test_both_hosts_agree_on_every_preset(three_levels, tmp_path, name, frames):
    """Also in a file that was made for 80 frames, whose frame rate is halved at every resize."""
    from stillmotion.trainer.base.host import InflatedUNet

    unet, other, structure = three_levels
    given = inputs(other, structure, frames, (8, 4))[:3]
    for config in {PRESETS[name](structure, length) for length in (frames, 80)}:
        inflation, path = trained(config, structure), tmp_path / "motion.safetensors"
        write_motion_file(path, inflation.state_dict(), MotionInfo(config, structure))
        ours = in_comfyui(unet, path, *given, None, frames)
        theirs = InflatedUNet(copy.deepcopy(other), inflation)(*given, Clip.of(frames))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        if (name, frames) != ("higen", 1):
            assert (theirs - other(*given).sample).abs().max() > 1e-2


def inputs(unet, structure, frames, size=(6, 10)):
    """Sample, timesteps and text for cond and uncond, and SDXL's further conditions as either host wants them."""
    rows = 2 * frames
    given = torch.randn(rows, 4, *size), torch.full((rows,), 500), torch.randn(rows, 77, structure.context)
    if structure.family != "sdxl":
        return *given, None, None
    added = {"text_embeds": torch.randn(rows, 64 - 6 * 8), "time_ids": torch.rand(rows, 6)}
    embedded = unet.add_time_proj(added["time_ids"].flatten()).reshape(rows, -1)
    return *given, added, torch.cat([added["text_embeds"], embedded], dim=-1)
