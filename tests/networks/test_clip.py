import pytest
import torch
from stillmotion.networks.clip import Clip, Rows, thin_rows


@pytest.mark.parametrize("frames, kept", [(1, [0]), (2, [0]), (3, [0, 2]), (7, [0, 2, 4, 6]), (8, [0, 2, 4, 6])])
def test_thinned_rows_are_every_second_frame_of_each_clip(frames, kept):
    rows = torch.randn(3 * frames, 5, 2)
    expected = torch.stack([rows[clip * frames + frame] for clip in range(3) for frame in kept])
    assert torch.equal(thin_rows(rows, frames), expected)
    assert Clip.of(frames).thinned().frames == len(kept)


def test_thinned_indices_are_those_of_the_thinned_rows():
    """Rows that carry their own frame number, of a window in the middle of a video."""
    clip = Clip((5, 6, 7, 9, 12))
    rows = torch.tensor(clip.indices * 2)
    assert thin_rows(rows, clip.frames).tolist() == [*clip.thinned().indices] * 2 == [5, 7, 12] * 2


def test_thinning_twice_is_every_fourth_frame():
    assert Clip.of(11).thinned().thinned().indices == (0, 4, 8)


def test_a_whole_clip_counts_from_zero():
    assert Clip.of(4).indices == (0, 1, 2, 3)
    assert Clip.of(4).frames == 4


@pytest.mark.parametrize("listed", [False, True])
def test_everything_beside_the_activations_is_thinned_alike(listed):
    """Rows that carry their own number, of two clips of five; the text may be one for each transformer block."""
    numbers = torch.arange(10)
    text = [numbers[:, None] + 20, numbers[:, None, None] + 30] if listed else numbers + 40
    rows = Rows(Clip((5, 6, 7, 8, 9)), numbers + 50, text, (numbers + 60, None, numbers + 70)).thinned()
    kept = [0, 2, 4, 5, 7, 9]
    assert rows.clip == Clip((5, 7, 9))
    assert torch.equal(rows.emb, numbers[kept] + 50)
    for thinned, given in zip(rows.text, text) if listed else [(rows.text, text)]:
        assert torch.equal(thinned, given[kept])
    assert isinstance(rows.text, list) == listed
    first, nothing, last = rows.tokens
    assert torch.equal(first, numbers[kept] + 60) and nothing is None and torch.equal(last, numbers[kept] + 70)


def test_thinning_rows_twice_is_every_fourth_frame_of_each_clip():
    numbers = torch.arange(22)
    rows = Rows(Clip.of(11), numbers, None).thinned().thinned()
    assert (rows.emb.tolist(), rows.text, rows.tokens) == ([0, 4, 8, 11, 15, 19], None, ())
