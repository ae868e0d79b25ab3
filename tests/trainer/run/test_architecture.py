"""Options make an inflation: a preset with what they change of it, and every option of the networks can be reached."""

from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import tiny_run as tiny
import torch
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import (
    PARTS,
    CrossFrames,
    InflationConfig,
    Mapping,
    Queries,
    Recurrence,
    Resampling,
    Tokens,
)
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.presets import PRESETS
from stillmotion.trainer.base.host import InflatedUNet, structure_of
from stillmotion.trainer.commands import fewshot
from stillmotion.trainer.config import read_options
from stillmotion.trainer.options import DecoupleOptions, FewShotOptions, InflateOptions
from stillmotion.trainer.run.architecture import check_frames, decoupled, inflation_config

SD15 = sd15_like([320, 640, 1280, 1280], [2, 2, 2, 2])


def options_of(*more, videos="v", base="b"):
    return read_options(InflateOptions, ["--videos", videos, "--base", base, *more], "inflate")


def config_of(*more):
    options = options_of(*more)
    return inflation_config(options, options.frames, SD15)


@pytest.mark.parametrize(
    "flags, changed",
    [
        ("--preset animatediff --halve 0 2", {"resampling": Resampling((0, 2))}),
        ("--preset lumiere --halve 2", {"resampling": Resampling((2,))}),
        ("--preset lumiere --halve none", {"resampling": Resampling((1, 2))}),
        ("--preset lumiere --frames 80", {"resampling": Resampling((0, 1, 2))}),
        ("--preset lumiere --mapping", {"mapping": Mapping()}),
        ("--preset lumiere-harivo --no-mapping", {"mapping": None}),
        ("--preset higen --tokens --frames 24", {"tokens": Tokens(24)}),
        ("--preset harivo --no-tokens", {"tokens": None}),
    ],
)
def test_options_change_the_preset(flags, changed):
    flags = flags.split()
    assert config_of(*flags) == replace(PRESETS[flags[1]](SD15, 16), **changed)


@pytest.mark.parametrize("said", ["[]", "'nowhere'", "['nowhere']"])
def test_frames_can_be_halved_nowhere(tmp_path, said):
    (tmp_path / "run.toml").write_text(f"preset = 'lumiere'\nhalve = {said}\n")
    assert config_of("--config", str(tmp_path / "run.toml")).resampling is None
    assert config_of("--preset", "lumiere", "--halve", "nowhere").resampling is None


def test_narrow_blocks_have_half_the_width_inside():
    config = config_of("--preset", "lumiere", "--narrow")
    assert config == replace(config, temporal=replace(PRESETS["lumiere"](SD15, 16).temporal, narrow=True))
    with torch.device("meta"):
        whole, narrow = (Inflation(c, SD15).state_dict() for c in (config_of("--preset", "lumiere"), config))
    inside = "input_blocks.1.1.factorised.over_pixels.weight"
    assert 2 * len(narrow[inside]) == len(whole[inside])


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--halve 3", r"--halve has levels \[3\]; this U-Net has resizes after levels 0 to 2"),
        ("--halve 2 1", r"--halve has levels \[2, 1\]; give at least one, each once, in rising order"),
        (
            "--preset harivo --narrow",
            "--narrow acts on factorised blocks, which --preset harivo has not",
        ),
        ("--preset lumiere --heads 4", "--heads acts on attention blocks, which --preset lumiere has not"),
        ("--preset harivo --layers 3", "--layers acts on stacked blocks"),
        (
            "--preset lumiere --mapping-kernel 3",
            "of the mapping network, which is off: add --mapping",
        ),
        ("--preset lumiere --token-count 4", "frame-wise tokens, which are off: add --tokens"),
        ("--blocks attention+wave", "--blocks, --heads or --layers: kind 'wave'; allowed are attention,"),
    ],
)
def test_options_that_the_unet_or_preset_has_no_place_for(flags, said):
    with pytest.raises(ValueError, match=said):
        config_of(*flags.split())


@pytest.mark.parametrize(
    "flags, fits",
    [
        ("--preset higen --halve 0 1 2 --frames 9", True),
        ("--preset higen --halve 0 1 2 --frames 8", "at level 3 the 8 have become one: give more --frames, or --halve"),
        ("--preset higen --halve 2 --frames 2", "at level 3 the 2 have become one"),
        ("--preset higen --frames 2", True),
        ("--preset lumiere --halve 0 1 2 --frames 8", True),
    ],
)
def test_only_what_learns_from_several_frames_must_have_them_everywhere(flags, fits):
    options = options_of(*flags.split())
    config = inflation_config(options, options.frames, SD15)
    if fits is True:
        return check_frames(options, config, SD15)
    with pytest.raises(ValueError, match=fits):
        check_frames(options, config, SD15)


@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_refused_for_want_of_frames_is_what_would_get_no_gradients(preset, frames):
    """Processes that train together wait for those of every weight."""
    unet, options = (
        tiny.tiny_unet(),
        options_of("--preset", preset, "--halve", "0", "--frames", str(frames), "--contrastive", "0"),
    )
    config = inflation_config(options, options.frames, structure_of(unet))
    model = InflatedUNet(unet, Inflation(config, structure_of(unet)))
    rows = torch.randn(frames, 4, 6, 4), torch.full((frames,), 500), torch.randn(frames, 77, 16)
    model(*rows, Clip.of(frames)).sum().backward()
    refused = (preset, frames) == ("higen", 2)
    assert any(p.grad is None for p in model.inflation.parameters()) == refused
    with pytest.raises(ValueError) if refused else nullcontext():
        check_frames(options, config, structure_of(unet))


REACHED = {
    "temporal.heads": ("--preset animatediff --heads 4", lambda c: c.temporal.heads == 4),
    "temporal.positional": ("--preset animatediff --no-positional", lambda c: not c.temporal.positional),
    "temporal.norm_scope": ("--preset animatediff --norm-scope clip", lambda c: c.temporal.norm_scope == "clip"),
    "temporal.middle": ("--preset animatediff --middle", lambda c: c.temporal.middle),
    "temporal.levels": (
        "--blocks factorised factorised convolution+transformer stacked",
        lambda c: c.temporal.levels == (("factorised",), ("factorised",), ("convolution", "transformer"), ("stacked",)),
    ),
    "temporal.layers": ("--preset lumiere --layers 5", lambda c: c.temporal.layers == 5),
    "temporal.narrow": ("--preset lumiere --narrow", lambda c: c.temporal.narrow),
    "resampling.levels": ("--halve 0", lambda c: c.resampling == Resampling((0,))),
    "mapping.kernel": ("--mapping --mapping-kernel 3", lambda c: c.mapping == Mapping(3)),
    "tokens.frames": ("--preset harivo --frames 20", lambda c: c.tokens.frames == 20),
    "tokens.count": ("--preset harivo --token-count 5", lambda c: c.tokens.count == 5),
    "tokens.neutral": ("--preset harivo --token-gate paper", lambda c: not c.tokens.neutral),
    "frame_attention.heads": ("--frame-heads 4", lambda c: c.frame_attention == CrossFrames(4)),
    "recurrence.mode": ("--recurrence paper_rnn", lambda c: c.recurrence == Recurrence("paper_rnn")),
    "motion.norm": ("--motion-norm l2sq", lambda c: c.motion.norm == "l2sq_mean_x_7168"),
    "motion.order": ("--interpolation sin_then_interp", lambda c: c.motion.order == "sin_then_interp"),
    "appearance.frames": ("--frames 20", lambda c: c.appearance.frames == 20),
    "appearance.features": ("--features dino", lambda c: c.appearance.features == "dino"),
    "queries.rank": ("--rank 3", lambda c: c.queries == Queries(3)),
}
"""For each option that the networks have: flags that set it, and what they then make of it."""


def decoupled_config_of(*more):
    options = read_options(DecoupleOptions, ["--videos", "v", "--base", "b", *more], "decouple")
    return decoupled(inflation_config(options, options.frames, SD15), options, str(options.features))


@pytest.mark.parametrize("flag, part", [("prior", "prior"), ("motion", "motion"), ("appearance", "appearance")])
def test_each_half_of_higen_can_be_left_out(flag, part):
    assert getattr(decoupled_config_of(), part) and getattr(decoupled_config_of(f"--no-{flag}"), part) is None
    assert decoupled_config_of().temporal == config_of("--preset", "higen").temporal


def few_shot_config_of(*more):
    return fewshot.inflation_config(read_options(FewShotOptions, ["--videos", "v", "--base", "b", *more], "fewshot"))


@pytest.mark.parametrize("option", REACHED)
def test_an_option_of_the_networks_is_set_by_a_flag(option):
    flags, holds = REACHED[option]
    if option.partition(".")[0] in ("frame_attention", "recurrence", "queries"):
        options = read_options(FewShotOptions, ["--videos", "v", "--base", "b", *flags.split()], "fewshot")
        assert holds(fewshot.inflation_config(options)) and not holds(
            InflationConfig(None, CrossFrames(), Recurrence(), Queries())
        )
    elif option.partition(".")[0] in ("motion", "appearance"):
        assert holds(decoupled_config_of(*flags.split())) and not holds(decoupled_config_of())
    else:
        assert holds(config_of(*flags.split())) and not holds(
            config_of(*flags.split()[:2][: 2 * ("--preset" in flags)])
        )


OF_HIGENS_RELEASE = {"prior.absent", "motion.absent", "appearance.absent"} | {
    f"resampler.{name}" for name in ("tokens", "width", "layers", "heads")
}
"""What only the authors' released network has, which `convert` reads."""

OF_INPAINTING_MODELS = {"condition.mask", "condition.blank"}
"""What only a stem has that was an inpainting model's first convolution, see `networks.formats.inpainting`."""


OF_WHAT_IS_BELOW = {f"temporal_lora.{name}" for name in ("rank", "levels", "middle", "layers", "frame_attention")}
"""What only a motion that is learnt on top of another has; all but the rank follows that, see `test_fewshot_over`."""


def test_no_option_of_the_networks_is_out_of_reach():
    every = {f"{part}.{field.name}" for part, kind in PARTS.items() for field in fields(kind)}
    assert set(REACHED) == every - OF_HIGENS_RELEASE - OF_INPAINTING_MODELS - OF_WHAT_IS_BELOW
