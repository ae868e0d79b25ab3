"""Strengths of a motion file at each level of the U-Net and at some frames."""

import pytest
import torch
from space_time_clips import HALVED, LEVEL, WIDTHS, assert_different, assert_same, attach, noise, sample, watched
from stillmotion.networks.config import CrossFrames, InflationConfig, Mapping, Queries, Recurrence, Temporal, Tokens
from stillmotion.networks.motion_file import read_motion_info, write_motion_file


def scaled(path, levels, factors):
    """The file with what its blocks add at each level made weaker by hand."""
    from safetensors.torch import load_file

    info, tensors = read_motion_info(path), load_file(path)
    level_of = {site.name: site.level for site in info.structure.sites()}
    for name in tensors:
        site, _, rest = name.partition(".attention.")
        if rest.startswith("proj_out"):
            tensors[name] = tensors[name] * factors[level_of[site]]
    other = path.with_name("scaled.safetensors")
    write_motion_file(other, tensors, info)
    return other


def test_the_strength_of_a_level_is_that_of_its_blocks(model, motion):
    path, factors = motion("animatediff"), (1.0, 0.5, 0.0, 1.5)
    got = sample(attach(model, path, levels=factors), noise(5))
    assert_same(got, sample(attach(model, scaled(path, WIDTHS, factors)), noise(5)))
    assert_different(got, sample(attach(model, path), noise(5)))
    assert_same(sample(attach(model, path, levels=(0.5,)), noise(5)), sample(attach(model, path, 0.5), noise(5)))


def test_a_level_of_strength_zero_keeps_the_frame_rate(model, motion):
    video, seen = watched(attach(model, motion(HALVED), levels=(0.0, 1.0, 0.0, 1.0)))
    sample(video, noise(5))
    assert {(LEVEL[block], rows) for block, rows, *_ in seen} == {(0, 10), (1, 10), (2, 6), (3, 6)}
    off = attach(model, motion("lumiere"), levels=(0.0,))
    assert_same(sample(off, noise(5)), sample(model, noise(5)))


def test_keyframes_are_factors_of_the_strength(model, motion):
    path = motion(InflationConfig(Temporal(), CrossFrames(), Recurrence(), mapping=Mapping(), tokens=Tokens(5)))
    half = attach(model, path, keyframes=((0, 0.5),))
    assert_same(sample(half, noise(5)), sample(attach(model, path, 0.5), noise(5)))
    still = sample(attach(model, path, keyframes=((3, 0.0),)), noise(5))
    assert_same(still, sample(model, noise(5)))


def test_keyframes_name_frames_of_the_whole_clip(model, motion):
    """In windows that do not overlap, each is a clip of its own: the first without its motion, the second with it."""
    from stillmotion.nodes.windowing import sampled_on_windows

    path = motion("animatediff")
    windowed = sampled_on_windows(attach(model, path, keyframes=((4, 0.0), (5, 1.0))), 5, 0, "flat")
    first, second = sample(windowed, noise(10)).split(5)
    assert_same(first, sample(model, noise(10)[:5]))
    assert_same(second, sample(attach(model, path), noise(10)[5:]))


@pytest.fixture
def load(pack, monkeypatch):
    """The STUNet Loader on a file, wherever it is."""
    import stillmotion.nodes.load as module

    def run(model, path, **more):
        monkeypatch.setattr(module, "_path", lambda name: path)
        return module.STUNetLoader.execute(model, path.name, 1.0, 0, "from file", **more).args[0]

    return run


def test_the_loader_reads_strengths_of_levels_and_frames(model, motion, load):
    path = motion("animatediff")
    got = load(model, path, level_strengths="1, 0.5, 0, 1", keyframes="0: 1.0, 2: 0.5\n4: 2")
    factors = {"levels": (1.0, 0.5, 0.0, 1.0), "keyframes": ((0, 1.0), (2, 0.5), (4, 2.0))}
    assert torch.equal(sample(got, noise(5)), sample(attach(model, path, **factors), noise(5)))
    assert torch.equal(sample(load(model, path), noise(5)), sample(attach(model, path), noise(5)))


@pytest.mark.parametrize(
    "inputs, error",
    [
        ({"level_strengths": "1, 1"}, "level_strengths has 2 factors; this model has 4 levels: give one for each"),
        ({"level_strengths": "1, a, 1, 1"}, "level_strengths has 'a'; write numbers from 0 to 10"),
        ({"keyframes": "0; 1"}, "keyframes has '0; 1'; write frame: factor"),
    ],
)
def test_strengths_that_cannot_be_are_refused_by_the_loader(model, motion, load, inputs, error):
    with pytest.raises(ValueError, match=error):
        load(model, motion("animatediff"), **inputs)


def test_graphs_of_before_there_were_such_inputs_still_run(pack):
    schema = pack["StillmotionSTUNetLoader"].GET_SCHEMA()
    assert [i.id for i in schema.inputs if i.optional] == ["level_strengths", "keyframes"]
    advanced = [i for i in schema.inputs if getattr(i, "advanced", None)]
    assert len(advanced) == 2 * any(hasattr(i, "advanced") for i in schema.inputs)


def test_strengths_that_change_nothing_are_warned_about(model, motion, caplog):
    attach(model, motion(InflationConfig(queries=Queries(4))), keyframes=((0, 0.5),))
    assert "motion.safetensors changes weights alone" in caplog.text
