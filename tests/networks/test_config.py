"""What the parts of an inflation may be: there and back through JSON, and refused where they cannot be built."""

import json

import pytest
from stillmotion.networks.config import (
    PARTS,
    CrossFrames,
    InflationConfig,
    Mapping,
    Queries,
    Recurrence,
    Resampling,
    Temporal,
    Tokens,
)
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.kinds import BLOCKS
from stillmotion.networks.sites import Level, Structure

SLIM = Structure((Level(32, (1,), (1, 1)), Level(64, (0,), (0, 2))), middle=1, context=768)
EVERYTHING = InflationConfig(Temporal(heads=4, middle=True), CrossFrames(heads=4), Recurrence(), Queries(rank=3))
EVERY_KIND = InflationConfig(
    Temporal(heads=4, middle=True, levels=(tuple(BLOCKS),)),
    *(CrossFrames(heads=4), Recurrence(), Queries(rank=3), Resampling((0,)), Mapping(), Tokens(frames=3)),
)

CONFIGS = {
    "nothing": InflationConfig(),
    "temporal": InflationConfig(temporal=Temporal(4, False, "clip", True)),
    "frame_attention": InflationConfig(frame_attention=CrossFrames(2)),
    "recurrence": InflationConfig(recurrence=Recurrence("paper_rnn")),
    "lora": InflationConfig(queries=Queries(5)),
    "full queries": InflationConfig(queries=Queries(None)),
    "everything": EVERYTHING,
    "kinds of each level": InflationConfig(
        Temporal(levels=(("convolution", "transformer"), ()), layers=3, narrow=True)
    ),
    "resampling": InflationConfig(resampling=Resampling((0, 2))),
    "mapping": InflationConfig(mapping=Mapping(kernel=3)),
    "tokens": InflationConfig(tokens=Tokens(frames=24, count=5, neutral=False)),
    "every kind": EVERY_KIND,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_round_trip(name):
    data = json.loads(json.dumps(CONFIGS[name].to_json()))
    assert InflationConfig.from_json(data) == CONFIGS[name]
    absent = {part for part in PARTS if getattr(CONFIGS[name], part) is None}
    assert not absent & data.keys()


@pytest.mark.parametrize(
    "data, message",
    [
        ({"warp": {}}, "has a part 'warp'; this version knows temporal, frame_attention, recurrence, queries"),
        ({"recurrence": {"depth": 2}}, "part 'recurrence' has an option 'depth'; this version knows mode"),
        ({"temporal": {"norm_scope": "batch"}}, "'temporal' has norm_scope 'batch'; allowed are frame, clip"),
        ({"recurrence": {"mode": "lstm"}}, "'recurrence' has mode 'lstm'; allowed are gated_scan, paper_rnn"),
        (
            {"temporal": {"levels": [["mamba"]]}},
            "'temporal' has kind 'mamba'; allowed are attention, convolution, fact",
        ),
        ({"temporal": {"depth": 2}}, "'temporal' has an option 'depth'; this version knows heads, layers, levels, mid"),
        ({"mapping": {"kernel": 5}}, "'mapping' has kernel 5; allowed are 1, 3"),
        (
            {"tokens": {"frames": 24, "text": 80}},
            "'tokens' has an option 'text'; this version knows count, frames, neu",
        ),
    ],
)
def test_config_of_a_newer_version_is_refused_and_says_what_is_known(data, message):
    with pytest.raises(ValueError, match=message):
        InflationConfig.from_json(data)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            {"temporal": {"levels": [["stacked", "attention", "stacked"]]}},
            "a kind twice at one level: stacked, attention",
        ),
        ({"temporal": {"levels": []}}, r"levels \(\); allowed are the kinds of each level, finest first"),
        ({"temporal": {"levels": 3}}, "levels 3; allowed are the kinds of each level, finest first"),
        ({"temporal": {"levels": ["attention"]}}, r"levels \('attention',\); allowed are the kinds of each level"),
        ({"temporal": {"layers": 17}}, "layers 17; allowed are whole numbers from 1 to 16"),
        ({"temporal": {"middle": 1}}, "middle 1; allowed are True, False"),
        ({"resampling": {"levels": []}}, r"levels \[\]; give at least one, each once, in rising order"),
        ({"resampling": {"levels": [1, 0]}}, r"levels \[1, 0\]; give at least one, each once, in rising order"),
        ({"resampling": {"levels": [1, 1]}}, r"levels \[1, 1\]; give at least one, each once, in rising order"),
        ({"resampling": {"levels": [0.0]}}, r"levels \(0.0,\); allowed are whole numbers from 0"),
        ({"resampling": {}}, "^its part 'resampling' lacks 'levels'$"),
        ({"tokens": {"count": 3}}, "^its part 'tokens' lacks 'frames'$"),
        ({"mapping": {"kernel": 1.0}}, "kernel 1.0; allowed are 1, 3"),
        ({"mapping": {"kernel": True}}, "kernel True; allowed are 1, 3"),
        ({"tokens": {"frames": 0}}, "frames 0; allowed are whole numbers from 1 to 1024"),
        ({"tokens": {"frames": 24, "count": 65}}, "count 65; allowed are whole numbers from 1 to 64"),
    ],
)
def test_values_that_are_not_allowed_are_refused_with_those_that_are(data, message):
    with pytest.raises(ValueError, match=message):
        InflationConfig.from_json(data)


ONE_LEVEL = Structure((Level(32, (1,), (1,)),), middle=None, context=768)


@pytest.mark.parametrize(
    "config, structure, message",
    [
        (InflationConfig(Temporal(levels=(("attention",),) * 3)), SLIM, "kinds for 3 levels; this U-Net has 2"),
        (
            InflationConfig(resampling=Resampling((1,))),
            SLIM,
            r"levels \[1\]; this U-Net has resizes after levels 0 to 0",
        ),
        (InflationConfig(resampling=Resampling((-1, 0))), SLIM, r"levels \[-1, 0\]; this U-Net has resizes after"),
        (
            InflationConfig(resampling=Resampling((0,))),
            ONE_LEVEL,
            r"levels \[0\]; this U-Net has one level, and no resize",
        ),
    ],
)
def test_levels_that_a_unet_has_not_are_refused(config, structure, message):
    with pytest.raises(ValueError, match=message):
        Inflation(config, structure)


@pytest.mark.parametrize(
    "kind, narrow, width, fits",
    [
        ("factorised", False, 32, True),
        ("factorised", True, 64, True),
        ("factorised", True, 32, "^narrow factorised blocks need a multiple of 64 channels; .* a level of 32$"),
        ("factorised", True, 96, "narrow factorised blocks need a multiple of 64 channels; .* a level of 96$"),
        ("attention", False, 48, "^attention blocks need a multiple of 32 channels; this U-Net has a level of 48$"),
        ("convolution", True, 48, "convolution blocks need a multiple of 32 channels"),
        ("stacked", True, 48, True),
    ],
)
def test_channels_that_norms_cannot_divide_are_refused(kind, narrow, width, fits):
    config = InflationConfig(Temporal(levels=((), (kind,)), narrow=narrow))
    structure = Structure((Level(24, (1,), (1,)), Level(width, (1,), (1,))), middle=None, context=768)
    if fits is True:
        assert Inflation(config, structure).at("input_blocks.3.1", kind)
    else:
        with pytest.raises(ValueError, match=fits):
            Inflation(config, structure)


@pytest.mark.parametrize("levels, frames", [((), [9, 9, 9, 9]), ((0, 1, 2), [9, 5, 3, 2]), ((1,), [9, 9, 5, 5])])
def test_the_frames_of_a_level_are_those_that_the_halvings_before_it_leave(levels, frames):
    config = InflationConfig(resampling=Resampling(levels) if levels else None)
    assert [config.frames_at(level, 9) for level in range(4)] == frames
