"""Tables of sets: every clip counts, and which clips of two sets are pairs."""

import pytest
from stillmotion.trainer.measures.report import Row, differences, numbers_of, pairing, summary


def rows(**motions):
    return [Row(name, "", 16, 8.0, {"motion": motion}, True) for name, motion in motions.items()]


def test_each_clip_counts_once_whatever_its_name_shares_with_others():
    for names in (("a.mp4", "a.gif"), ("seed 0.5", "seed 0.7"), ("a.mp4", "a.mp4")):
        of_set = [*rows(**{names[0]: 1.0}), *rows(**{names[1]: 3.0})]
        assert summary(of_set, 0)["motion"].mean == 2, names


def test_clips_of_one_name_are_pairs_whatever_their_form_is():
    assert numbers_of(rows(**{"b/a.MP4": 1.0}), "motion").keys() == {"b/a"}
    assert numbers_of(rows(**{"seed 0.5": 1.0, "seed 0.7": 1.0}), "motion").keys() == {"seed 0.5", "seed 0.7"}
    assert numbers_of(rows(**{"a.mp4": 1.0, "a.gif": 2.0}), "motion").keys() == {"a.mp4", "a.gif"}


@pytest.mark.parametrize("theirs, said", [({"a": 1.0, "b": 1.0, "x": 1.0}, "the 2 that have"), ({"x": 1.0}, "no clip")])
def test_it_is_said_how_many_clips_were_compared(theirs, said):
    found = differences(rows(**{"a.mp4": 1.0, "b.mp4": 2.0, "c.mp4": 3.0}), rows(**theirs), 0)
    assert said in pairing("ours", "theirs", found)
