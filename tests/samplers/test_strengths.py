"""Strengths as users write them."""

import pytest
from stillmotion.samplers.strengths import levels_for, parse_keyframes, parse_levels


@pytest.mark.parametrize(
    "text, factors",
    [
        ("", ()),
        (" \n", ()),
        ("0.5", (0.5,)),
        ("1, 1, 0.5, 0", (1.0, 1.0, 0.5, 0.0)),
        (" 1 ,.25\n,1e1", (1.0, 0.25, 10.0)),
    ],
)
def test_levels(text, factors):
    assert parse_levels(text) == factors


@pytest.mark.parametrize("part", [",", "a", "-0.1", "10.5", "nan", "inf", "1 2", "0:1", "0x1", "1_0", "١", "1,,2"])
def test_a_level_that_is_no_factor_is_refused(part):
    with pytest.raises(ValueError, match=r"^level_strengths has '.*'; write numbers from 0 to 10, for example \"1, 1"):
        parse_levels(f"1, {part}")


@pytest.mark.parametrize("text", [None, "null", "None", " none ", ""])
def test_no_text_is_no_factors(text):
    assert parse_levels(text) == parse_keyframes(text) == ()


def test_a_comma_at_the_end_counts_for_nothing():
    assert parse_levels("1, 0.5,") == parse_levels("1, 0.5 , ") == (1.0, 0.5)
    assert parse_keyframes("0: 1, 8: .5,") == ((0, 1.0), (8, 0.5))


@pytest.mark.parametrize("factor", ["1_0", "١", "0x1", "nan", "infinity", "1e999"])
def test_a_keyframe_of_another_way_to_write_numbers_is_refused(factor):
    with pytest.raises(ValueError, match="^keyframes has"):
        parse_keyframes(f"0: {factor}")


def test_one_factor_stands_for_all_levels():
    assert levels_for((0.5,), 4) == (0.5, 0.5, 0.5, 0.5)
    assert levels_for((1.0, 0.0), 2) == (1.0, 0.0)
    assert levels_for((), 4) == ()


@pytest.mark.parametrize("number", [2, 3, 5])
def test_another_number_of_levels_is_refused(number):
    with pytest.raises(ValueError, match=f"^level_strengths has {number} factors; this model has 4 levels: give one"):
        levels_for((1.0,) * number, 4)


@pytest.mark.parametrize(
    "text",
    [
        "0: 1.0, 8: 0.5, 15: 1.2",
        "0:1,8:.5,15:1.2",
        "0: 1.0\n8: 0.5\n15: 1.2\n",
        '"0" : "1.0",\n"8" : "0.5",\n"15" : "1.2",',
        "0: (1.0), 8: (0.5), 15: (1.2)",
        "15: 1.2, 0: 1, 8: 0.5",
    ],
    ids=["spaced", "dense", "lines", "prompt schedule", "value schedule", "in any order"],
)
def test_keyframes(text):
    assert parse_keyframes(text) == ((0, 1.0), (8, 0.5), (15, 1.2))


def test_no_keyframes():
    assert parse_keyframes("") == parse_keyframes(" ,\n") == ()


@pytest.mark.parametrize("part", ["8", "8 0.5", "-1: 1", "1.5: 1", "a: 1", "8:", "1234567: 1"])
def test_what_is_no_keyframe_is_refused(part):
    with pytest.raises(
        ValueError, match=r"^keyframes has '.*'; write frame: factor, for example \"0: 1.0, 8: 0.5\"\.$"
    ):
        parse_keyframes(f"0: 1, {part}")


@pytest.mark.parametrize("factor", ["b", "-1", "11", "nan", "0.5: 1", "()"])
def test_a_keyframe_whose_factor_is_none_is_refused(factor):
    with pytest.raises(ValueError, match=r"^keyframes has '.*'; write numbers from 0 to 10, for example \"0: 1.0"):
        parse_keyframes(f"8: {factor}")


def test_a_frame_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="^keyframes has frame 8 twice; give each frame one factor"):
        parse_keyframes("0: 1, 8: 1, 08: 0.5")


def test_other_inputs_have_their_own_range_and_name():
    def parse(text):
        return parse_keyframes(text, "motion_keyframes", 2000.0, '"0: 300"')

    assert parse("0: 300, 15: 2000") == ((0, 300.0), (15, 2000.0))
    with pytest.raises(
        ValueError, match="^motion_keyframes has '2001'; write numbers from 0 to 2000, for .* \"0: 300\""
    ):
        parse("0: 2001")
    with pytest.raises(ValueError, match="^motion_keyframes has 'much'; write frame: factor, for example \"0: 300\""):
        parse("much")
    with pytest.raises(ValueError, match="^motion_keyframes has frame 1 twice"):
        parse("1: 2, 1: 3")
