"""What the papers put together: where it goes in SD1.5 and in smaller U-Nets, and how large it is."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from stillmotion.networks.config import InflationConfig, Mapping, Tokens
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.presets import PRESETS, animatediff, harivo, higen, lumiere, lumiere_harivo
from stillmotion.networks.sites import Level, Structure

LEVELS = [Level(width, (d, d), (d, d, d)) for width, d in [(320, 1), (640, 1), (1280, 1), (1280, 0)]]
SD15 = Structure(tuple(LEVELS), 1, 768)
TWO_LEVELS = Structure((Level(32, (1,), (1, 1)), Level(64, (0,), (0, 2))), middle=1, context=768)
ONE_LEVEL = Structure((Level(64, (1, 1), (1, 1, 1)),), middle=1, context=768)
STRUCTURES = {"SD1.5": SD15, "two levels": TWO_LEVELS, "one level": ONE_LEVEL}

SQUARES = 5 * 320**2 + 5 * 640**2 + 5 * 1280**2
"""C² summed over the 15 units above SD1.5's coarsest level."""


def built(preset, structure=SD15, frames=32):
    with torch.device("meta"):
        return Inflation(preset(structure, frames), structure)


def places(preset, structure=SD15, frames=32):
    """Sites by part, without the weights of tokens in each cross-attention."""
    found = defaultdict(list)
    for name, _ in built(preset, structure, frames).parts():
        site, part = name.rsplit(".", 1)
        found[part].append(site)
    return {part: [site for site in sites if "attn2" not in site] for part, sites in found.items()}


def count(preset, part=None, frames=32):
    modules = [module for name, module in built(preset, SD15, frames).parts() if part in (None, name.rsplit(".", 1)[1])]
    return sum(p.numel() for module in modules for p in module.parameters())


def down(*sites):
    return [f"input_blocks.{site}" for site in sites]


def up(*sites):
    return [f"output_blocks.{site}" for site in sites]


def test_lumieres_places_in_sd15():
    assert places(lumiere) == {
        "factorised": down("1.1", "2.1", "4.1", "5.1", "7.1", "8.1") + up(*(f"{i}.1" for i in range(3, 12))),
        "stacked": [*down("10.0", "11.0"), "middle_block.1", *up("0.0", "1.0", "2.0")],
        "resampling": down("3.0", "6.0", "9.0") + up("2.1", "5.2", "8.2"),
    }


def test_animatediffs_places_in_sd15():
    """The 20 of its first and third module: after every unit, not in the middle."""
    fine, coarse = [f"{i}.1" for i in (1, 2, 4, 5, 7, 8)], [f"{i}.0" for i in (10, 11)]
    units = down(*fine, *coarse) + up("0.0", "1.0", "2.0", *(f"{i}.1" for i in range(3, 12)))
    assert places(animatediff) == {"attention": units}


@pytest.mark.parametrize("preset, base", [(harivo, animatediff), (lumiere_harivo, lumiere)])
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_harivo_adds_a_mapping_network_and_tokens_for_so_many_frames(preset, base, structure):
    for frames in (16, 24, 40):
        expected = replace(base(structure, frames), mapping=Mapping(kernel=1), tokens=Tokens(frames, 3, neutral=True))
        assert preset(structure, frames) == expected


def test_harivos_tokens_are_weighed_in_all_16_cross_attentions_of_sd15():
    weights = [name for name, _ in built(harivo).parts() if name.endswith("attn2.tokens")]
    assert len(weights) == 16
    assert places(harivo)["mapping"] == ["sample"]
    assert places(harivo)["tokens"] == ["text"]


def test_higens_places_in_sd15():
    """22 ResBlocks; the first convolution and 16 transformers."""
    found = places(higen)
    res = down(*(f"{i}.0" for i in (1, 2, 4, 5, 7, 8, 10, 11))) + ["middle_block.0", "middle_block.2"]
    assert found["convolution"] == res + up(*(f"{i}.0" for i in range(12)))
    transformers = down("0.0", *(f"{i}.1" for i in (1, 2, 4, 5, 7, 8))) + ["middle_block.1"]
    assert found["transformer"] == transformers + up(*(f"{i}.1" for i in range(3, 12)))
    assert found.keys() == {"convolution", "transformer"}


def test_places_in_a_unet_of_two_levels():
    assert places(lumiere, TWO_LEVELS) == {
        "factorised": ["input_blocks.1.1", "output_blocks.2.1", "output_blocks.3.1"],
        "stacked": ["input_blocks.3.0", "middle_block.1", "output_blocks.0.0", "output_blocks.1.1"],
        "resampling": ["input_blocks.2.0", "output_blocks.1.2"],
    }


def test_a_unet_of_one_level_has_attention_alone_and_its_frame_rate():
    units = ["input_blocks.1.1", "input_blocks.2.1", "middle_block.1", *up("0.1", "1.1", "2.1")]
    assert places(lumiere, ONE_LEVEL) == {"stacked": units}
    assert lumiere(ONE_LEVEL, 80).resampling is None


@pytest.mark.parametrize(
    "structure, frames, levels",
    [
        (SD15, 16, (1, 2)),
        (SD15, 24, (1, 2)),
        (SD15, 31, (1, 2)),
        (SD15, 32, (0, 1, 2)),
        (SD15, 80, (0, 1, 2)),
        (TWO_LEVELS, 16, (0,)),
        (TWO_LEVELS, 80, (0,)),
    ],
)
def test_short_clips_keep_their_frame_rate_at_the_first_resize(structure, frames, levels):
    """N = 8 from 32 frames, 4 below; where there is one resize, that one."""
    resampling = lumiere(structure, frames).resampling
    assert resampling.levels == levels
    assert resampling.factor == 2 ** len(levels)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_every_preset_survives_a_motion_files_description(name, structure):
    config = PRESETS[name](structure, 24)
    assert InflationConfig.from_json(config.to_json()) == config
    config.check(structure)


@pytest.mark.parametrize("preset, millions", [(animatediff, 417.14), (higen, 545.32)])
def test_millions_of_parameters_on_sd15(preset, millions):
    """HiGen's are 266.89 of its convolutions and 278.43 of its transformers."""
    assert round(count(preset) / 1e6, 2) == millions


def test_harivo_adds_three_million():
    """The mapping network's attention 8 224 and its two convolutions, 2.96 million of tokens, one number a layer."""
    more = count(harivo, frames=24) - count(animatediff)
    assert more == (8224 + 2 * 3 * 4 * 16 + 16 + 4) + (5 * (768**2 + 768) + 77 * 72) + 16
    assert round(more / 1e6, 2) == 2.97


def test_parameters_of_lumieres_convolution_blocks():
    """15 of 13 C²: 139.8 million weights; the rest are biases and norms."""
    assert round(13 * SQUARES / 1e6, 1) == 139.8
    assert count(lumiere, "factorised") == 13 * SQUARES + 7 * 5 * (320 + 640 + 1280)


def test_parameters_of_lumieres_attention_blocks():
    """Six of two layers of 16 C²: 314.6 million; the projections out of them are 9.8 million more."""
    c = 1280
    assert round(6 * 2 * 16 * c**2 / 1e6, 1) == 314.6
    assert count(lumiere, "stacked") == 6 * (2 * (16 * c**2 + 14 * c) + c**2 + c)


def test_parameters_of_lumieres_resampling():
    """3 C² at 320, 640 and 1280 channels on the way down, where the maps are still those of the finer level: 6.5
    million; on the way up 1280, 1280 and 640 channels, those of the coarser one: 11.1 million."""
    widths = [320, 640, 1280] + [1280, 1280, 640]
    total = count(lumiere, "resampling")
    assert total == sum(3 * c**2 + c for c in widths)
    assert round(total / 1e6, 1) == 17.5
