"""Space-time U-Nets on a MODEL: the time axis shrinks inside, and everything that comes from outside follows it."""

import math

import pytest
import torch
from space_time_clips import (
    HALVED,
    HEIGHT,
    LEVEL,
    WIDTH,
    WIDTHS,
    assert_different,
    assert_same,
    attach,
    condition,
    difference,
    noise,
    sample,
    watched,
)
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    CrossFrames,
    InflationConfig,
    Mapping,
    Queries,
    Recurrence,
    Resampling,
    Temporal,
    Tokens,
)
from stillmotion.networks.inflation import Attached, Inflation
from stillmotion.networks.motion_file import read_motion_info, write_motion_file
from stillmotion.samplers.windows import FUSES, fuse, windows_of

EVERYTHING = InflationConfig(
    Temporal(levels=(("attention", "convolution"), ("factorised",), ("transformer",), ("stacked",)), middle=True),
    *(CrossFrames(), Recurrence(), Queries(4), Resampling((0, 2)), Mapping(), Tokens(5)),
)
SPACE_TIME = pytest.mark.parametrize("preset", ["lumiere", "lumiere-harivo"])


@pytest.mark.parametrize("frames, rates", [(8, [8, 4, 2, 1]), (9, [9, 5, 3, 2]), (17, [17, 9, 5, 3]), (1, [1] * 4)])
def test_the_time_axis_shrinks_and_grows_back(model, motion, frames, rates):
    """Patches are told which frames they see, in the packs' own way, and nothing is left of it at the finest level."""
    video, seen = watched(attach(model, motion(HALVED)))
    sample(video, noise(frames))
    assert {block for block, *_ in seen} == set(LEVEL)
    for block, rows, told_rows, told in seen:
        level = LEVEL[block]
        assert rows == told_rows == 2 * rates[level]
        indices = list(range(0, frames, 2**level))
        expected = {"full_length": frames, "context_length": rates[level], "sub_idxs": indices}
        assert told == (expected if level else None)


def test_only_the_levels_of_the_file_are_halved(model, motion):
    video, seen = watched(attach(model, motion(InflationConfig(resampling=Resampling((1,))))))
    sample(video, noise(5))
    assert {(LEVEL[block], rows) for block, rows, *_ in seen} == {(0, 10), (1, 10), (2, 6), (3, 6)}


def test_the_frames_of_several_clips_are_named_one_after_the_other(model, motion):
    video, seen = watched(attach(model, motion(HALVED), frames_per_clip=5))
    sample(video, noise(10))
    told = {LEVEL[block]: told["sub_idxs"] for block, _, _, told in seen if told}
    assert told == {1: [0, 2, 4, 5, 7, 9], 2: [0, 4, 5, 9], 3: [0, 5]}
    assert {told["full_length"] for *_, told in seen if told} == {10}


def test_every_frame_keeps_its_own_text_and_time_embedding(model, motion):
    """A new file changes none of the frames that stay, wherever they are told different things."""
    frames, positive, still = 9, condition(1, rows=9), model.clone()

    def each_its_own(emb, channels, options):
        return emb + torch.linspace(-1, 1, frames).repeat(2)[:, None]

    still.set_model_patch(each_its_own, "emb_patch")
    expected = sample(still, noise(frames), positive, steps=2)
    for preset in ("lumiere", "higen"):
        got = sample(attach(still, motion(preset, fresh=True)), noise(frames), positive, steps=2)
        assert_same(got[::8], expected[::8])
        assert (difference(got[1], expected[1]) < 1e-5) == (preset == "higen")


def test_text_and_time_embedding_are_those_of_the_frames_that_stay(model, motion):
    frames, text, seen = 9, condition(1, rows=9), []
    video = attach(model, motion(HALVED))
    emb = torch.randn(frames, 128)
    video.set_model_patch(lambda given, *_: emb.repeat(len(given) // frames, 1), "emb_patch")

    def note(n, context, value, extra):
        seen.append((LEVEL[extra["block"]], context))
        return n, context, value

    video.set_model_attn2_patch(note)
    unet, embedded = model.model.diffusion_model, []
    levels = {unet.input_blocks[1 + 2 * level][0].emb_layers: level for level in range(4)}
    hooks = [m.register_forward_pre_hook(lambda m, given: embedded.append((levels[m], given[0]))) for m in levels]
    sample(video, noise(frames), text, cfg=1.0)
    for hook in hooks:
        hook.remove()
    assert {level for level, _ in seen} == {level for level, _ in embedded} == {0, 1, 2, 3}
    assert all(torch.equal(context, text[0][0][:: 2**level]) for level, context in seen)
    assert all(torch.equal(given, emb[:: 2**level]) for level, given in embedded)


def core_windows(model, length):
    from comfy import context_windows as core

    model = model.clone()
    schedule, method = core.get_matching_context_schedule("standard_static"), core.get_matching_fuse_method("flat")
    model.model_options["context_handler"] = core.IndexListContextHandler(
        schedule, method, context_length=length, context_overlap=0, dim=0
    )
    return model


@SPACE_TIME
def test_core_windows_with_their_anchor_frame(model, motion, preset):
    """Since 0.21 each window but the first has the frame before it in front: 8, 9 and 9 frames."""
    from comfy import context_windows as core

    video = attach(model, motion(preset))
    anchored = hasattr(core.IndexListContextHandler(None, None), "causal_window_fix")
    starts = [0, 7, 15] if anchored else [0, 8, 16]
    windows = [list(range(start, end)) for start, end in zip(starts, (8, 16, 24))]
    alone = [sample(video, noise(24)[window])[-8:] for window in windows]
    windowed, seen = watched(core_windows(video, 8))
    assert_same(sample(windowed, noise(24)), torch.cat(alone))
    named = {(LEVEL[block], tuple(told["sub_idxs"])) for block, _, _, told in seen}
    assert named == {(level, tuple(window[:: 2**level])) for level in range(4) for window in windows}
    assert {told["full_length"] for *_, told in seen} == {24}


@SPACE_TIME
def test_our_windows_of_odd_length(model, motion, preset):
    """One step to the end makes what the model predicts: what it predicts for the windows, fused."""
    from stillmotion.nodes.windowing import sampled_on_windows

    video, windows = attach(model, motion(preset)), windows_of(11, 5, 2)
    alone = [sample(video, noise(11)[list(w)]) for w in windows]
    weights = [FUSES["pyramid"](w, 11, 2) for w in windows]
    windowed, seen = watched(sampled_on_windows(video, 5, 2, "pyramid"))
    assert_same(sample(windowed, noise(11)), fuse(alone, windows, weights, 11))
    named = {(LEVEL[block], tuple(told["sub_idxs"])) for block, _, _, told in seen}
    assert named == {(level, tuple(w[:: 2**level])) for level in range(4) for w in windows}
    assert {told["full_length"] for *_, told in seen} == {11}


def test_a_window_that_leaves_a_frame_of_fewer_is_warned_about(model, motion, caplog):
    from stillmotion.nodes.windowing import sampled_on_windows

    path = motion(HALVED)
    sample(sampled_on_windows(attach(model, path), 8, 2, "flat"), noise(11))
    sample(sampled_on_windows(attach(model, path), 5, 2, "flat"), noise(5))
    sample(sampled_on_windows(attach(model, path, levels=(0.0,)), 5, 2, "flat"), noise(11))
    assert "would fit" not in caplog.text
    sample(sampled_on_windows(attach(model, path, levels=(0.0, 1.0, 1.0, 1.0)), 6, 2, "flat"), noise(11))
    assert "makes one frame of 4 at its coarsest level; a window of 8 would fit better than one of 6" in caplog.text


def by_hand(unet, attached, given, order=(0,), frames=5, control=None):
    """Our loop over some of the conditions, in an order of their own."""
    from stillmotion.nodes.unet import run_unet

    parts = {name: [rows.split(frames)[i] for i in order] for name, rows in given.items()}
    control = {kind: [t.clone() for t in residuals] for kind, residuals in control.items()} if control else None
    options = {"cond_or_uncond": list(order)}
    x, timesteps, context = (torch.cat(parts[name]) for name in ("x", "timesteps", "context"))
    out = run_unet(unet, attached, Clip.of(frames), x, timesteps, context, control=control, transformer_options=options)
    return dict(zip(order, out.split(frames)))


def inputs(rows):
    x, context = torch.randn(rows, 4, HEIGHT, WIDTH), torch.randn(rows, 77, 768)
    return {"x": x, "timesteps": torch.full((rows,), 500.0), "context": context}


def residuals(rows):
    """A ControlNet's, in the order in which the host takes them: from the end of each list."""
    shapes = [(32, 8, 16), (32, 8, 16), (32, 4, 8), (32, 4, 8), (32, 2, 4), (64, 2, 4), (64, 1, 2), (64, 1, 2)]
    return {
        "input": [torch.randn(rows, *shape) for shape in shapes[::-1]],
        "middle": [torch.randn(rows, 64, 1, 2)],
        "output": [torch.randn(rows, *shape) for shape in shapes],
    }


def mean_of_merged(residual, frames):
    """(two conditions * frames, ...): the mean over the frames that are one at the level with so many pixels."""
    merged = {8: 1, 4: 2, 2: 4, 1: 8}[residual.shape[-2]]
    clips = [
        torch.stack([clip[start : start + merged].mean(0) for start in range(0, frames, merged)])
        for clip in residual.split(frames)
    ]
    return torch.cat(clips)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["input", "middle", "output"])
@pytest.mark.parametrize("frames", [5, 8])
def test_the_residuals_of_a_controlnet_are_pooled_to_each_level(small_unet, caplog, frames, kind):
    from stillmotion.networks.sites import structure_from_ldm

    unet = small_unet(widths=WIDTHS)
    structure = structure_from_ldm({n: tuple(t.shape) for n, t in unet.state_dict().items()})
    attached, given = [Attached(Inflation(HALVED, structure))], inputs(2 * frames)
    full = {kind: residuals(2 * frames)[kind]}
    pooled = {kind: [mean_of_merged(residual, frames) for residual in full[kind]]}
    got, expected, without = (
        torch.stack(list(by_hand(unet, attached, given, (0, 1), frames, control).values()))
        for control in (full, pooled, None)
    )
    assert torch.equal(got, expected) and "control could not be applied" not in caplog.text
    assert (got - without).abs().amax(dim=(-3, -2, -1)).min() > 0.01


class Hinted(torch.nn.Module):
    """What a ControlNet runs; here the hint's own pixels, at the coarsest level."""

    dtype = torch.float32

    def forward(self, x, hint, timesteps, context):
        pixels = torch.nn.functional.interpolate(hint, (1, 2))[:, :1].expand(-1, 64, -1, -1)
        return {"input": [], "output": [], "middle": [20 * pixels]}


def test_a_controlnet_acts_at_the_deepest_level(model, motion, caplog):
    import comfy.controlnet

    video, frames = attach(model, motion("lumiere")), 9
    hint = torch.rand(frames, 3, 8 * HEIGHT, 8 * WIDTH)

    def guided(hint):
        net = comfy.controlnet.ControlNet(Hinted(), load_device=torch.device("cpu"))
        return condition(1, control=net.set_cond_hint(hint), control_apply_to_uncond=True)

    got = sample(video, noise(frames), guided(hint))
    means = torch.stack([hint[:8].mean(0)] * 8 + [hint[8]])
    assert_same(got, sample(video, noise(frames), guided(means)))
    assert_different(got, sample(video, noise(frames)))
    assert "control could not be applied" not in caplog.text


@torch.no_grad()
@SPACE_TIME
def test_conditions_together_are_conditions_apart_in_either_order(model, motion, preset):
    from stillmotion.nodes.motion import load_motion

    unet, frames = model.model.diffusion_model, 5
    attached = [Attached(load_motion(motion(preset)).patcher.model)]
    given = inputs(3 * frames)
    apart = {i: by_hand(unet, attached, given, (i,))[i] for i in range(3)}
    assert_different(apart[0], apart[1])
    for order in ((0, 1), (1, 0), (2, 0, 1)):
        together = by_hand(unet, attached, given, order)
        assert all((together[i] - apart[i]).abs().max() < 1e-4 for i in order)


@SPACE_TIME
def test_cond_and_uncond_apart_equal_both_together(model, motion, preset):
    video = attach(model, motion(preset))
    mask = torch.ones(1, 8 * HEIGHT, 8 * WIDTH)  # a mask forces separate calls and otherwise changes nothing
    apart = sample(video, noise(5), condition(1, mask=mask, mask_strength=1.0))
    assert_same(apart, sample(video, noise(5)))


@SPACE_TIME
def test_two_clips_in_one_batch_are_two_runs(model, motion, preset):
    path, both = motion(preset), torch.cat([noise(5, seed=0), noise(5, seed=1)])
    batch = sample(attach(model, path, frames_per_clip=5), both, steps=2)
    runs = torch.cat([sample(attach(model, path), clip, steps=2) for clip in both.split(5)])
    assert_same(batch, runs)
    assert_different(sample(attach(model, path), both, steps=2), batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_run_on_a_base_in_full_and_in_half(small_model, model, motion, dtype):
    """On a float32 base they are what a float32 file with the same values is, bit for bit."""
    from safetensors.torch import load_file

    path = motion("lumiere-harivo")
    info, half = read_motion_info(path), {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    small, same = path.with_name("half.safetensors"), path.with_name("same.safetensors")
    write_motion_file(small, half, info)
    write_motion_file(same, {name: tensor.float() for name, tensor in half.items()}, info)
    exact = sample(attach(model, same), noise(5))
    assert torch.equal(sample(attach(model, small), noise(5)), exact)
    base = small_model(dtype=torch.bfloat16, widths=WIDTHS)
    base.model.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
    moved = (exact - sample(model, noise(5))).abs().mean()
    assert (sample(attach(base, small), noise(5)) - exact).abs().mean() < 0.1 * moved


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_full_precision_takes_half_the_memory_on_a_host_in_half(small_model, motion, monkeypatch, dtype):
    import comfy.model_management
    from stillmotion.nodes.attach import KEY

    base, path = small_model(dtype=dtype, widths=WIDTHS), motion(EVERYTHING)
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_, **__: torch.float32)
    full = attach(base, path)
    expected = sample(full, noise(5))
    size = full.get_additional_models_with_key(KEY)[0].model_size()
    del full
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_, **__: dtype)
    half = attach(base, path)
    assert half.get_additional_models_with_key(KEY)[0].model_size() == size / 2
    assert difference(sample(half, noise(5)), expected) < 0.01


def test_a_partly_loaded_space_time_inflation_gives_the_same_clip(model, motion):
    """As the host loads it where memory is short: most layers wait in slow memory and are cast when called."""
    from stillmotion.nodes.attach import KEY

    video = attach(model, motion(EVERYTHING))
    whole = sample(video, noise(5))
    (patcher,) = video.get_additional_models_with_key(KEY)
    patcher.detach()
    patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    assert patcher.model.model_lowvram
    assert torch.equal(sample(video, noise(5)), whole)


def test_no_parameter_is_left_out_of_a_partial_load(model, motion):
    """The host skips parameters of modules that have others inside."""
    from stillmotion.nodes.motion import load_motion

    inflation = load_motion(motion(EVERYTHING)).patcher.model
    own = [m for m in inflation.modules() if list(m.parameters(recurse=False)) + list(m.buffers(recurse=False))]
    assert not [type(m).__name__ for m in own if list(m.children())]


def replaced(q, k, v, extra):
    """What an image adapter puts in the place of a cross-attention: the attention, and one to something else."""
    from comfy.ldm.modules.attention import optimized_attention

    image = torch.ones_like(k[:, :4]) * torch.linspace(-1, 1, k.shape[-1])
    attended = (optimized_attention(q, *pair, extra["n_heads"]) for pair in ((k, v), (image, image)))
    return sum(attended)


LORA = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"


def test_frame_wise_tokens_act_beside_a_lora_and_an_image_adapter(model, motion):
    """Each changes the clip, with and without the others."""
    halved = Resampling((0,))
    with_tokens = motion(InflationConfig(resampling=halved, tokens=Tokens(5)), "tokens")
    without = motion(InflationConfig(resampling=halved), "none")
    delta = torch.randn(32, 768, generator=torch.Generator().manual_seed(3))

    def clip(tokens, lora, adapter):
        base = attach(model, with_tokens if tokens else without)
        if lora:
            base.add_patches({LORA: ("diff", (delta,))}, 1.0)
        if adapter:
            base.set_model_attn2_replace(replaced, "input", 3)
        return sample(base, noise(5))

    clips = [clip(*switches) for switches in ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))]
    for other in clips[1:]:
        assert_different(clips[0], other)


def test_the_memory_estimate_is_of_the_hungriest_part_on_its_own_level(model, motion):
    from stillmotion.nodes.attach import prepare_sampling

    def rows(config):
        asked, shape = [], (100, 4, HEIGHT, WIDTH)
        prepare_sampling(lambda model, shape, *rest: asked.append(shape[0]), attach(model, motion(config)), shape, {})
        return asked[0]

    required = model.model.memory_required([100, 4, HEIGHT, WIDTH])
    pixels = 100 * HEIGHT * WIDTH
    for config, numbers in {"lumiere": 6 * 32, "animatediff": 20 * 32}.items():
        assert rows(config) == math.ceil(100 * (1 + numbers * pixels * 4 / required))
    assert rows("animatediff") < rows("harivo")
