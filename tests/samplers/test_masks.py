"""Masks of clips: spread over frames, grown, feathered, filled."""

import pytest
import torch
from stillmotion.samplers.masks import feathered, filled, for_frames, grown


def dot(height=21, width=25):
    mask = torch.zeros(1, height, width)
    mask[0, 10, 12] = 1
    return mask


@pytest.mark.parametrize(
    "count, frames, taken",
    [(1, 3, [0, 0, 0]), (3, 3, [0, 1, 2]), (2, 5, [0, 0, 1, 1, 1]), (4, 2, [1, 3]), (3, 7, [0, 0, 1, 1, 1, 2, 2])],
)
def test_masks_are_spread_over_the_frames(count, frames, taken):
    masks = torch.arange(count).view(count, 1, 1) * torch.ones(count, 2, 3)
    assert for_frames(masks, frames)[:, 0, 0].tolist() == taken


def test_a_mask_without_a_batch_is_for_all_and_other_axes_are_refused():
    mask = torch.rand(2, 3)
    assert torch.equal(for_frames(mask, 4), mask.expand(4, 2, 3))
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\)"):
        for_frames(torch.zeros(1, 2, 3, 4), 2)


def test_growing_reaches_so_far_and_shrinking_comes_back():
    mask = dot()
    assert grown(mask, 0).equal(mask)
    wide = grown(mask, 6)
    rows, columns = wide[0].nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 16, 6, 18)
    assert wide[0, 4, 6] == 0, "round, not square"
    assert torch.equal(grown(wide, -6), mask)
    assert torch.equal(grown(torch.ones(1, 5, 5), -2), torch.ones(1, 5, 5)), "the border is no edge"
    assert grown(0.3 * mask, 1).sum().item() == pytest.approx(5 * 0.3), "soft masks stay soft"


@pytest.mark.parametrize("pixels", [1, 2, 5, 8])
def test_a_feather_falls_from_the_edge_to_0_in_so_many_pixels(pixels):
    mask = torch.zeros(1, 9, 40)
    mask[:, :, :15] = 1
    soft = feathered(mask, pixels)[0, 4]
    assert (soft[:15] == 1).all() and (soft[15 + pixels :] == 0).all()
    ramp = soft[14 : 15 + pixels + 1]
    assert (ramp[1:] <= ramp[:-1]).all() and 0 < soft[15] < 1 and (soft[15 : 15 + pixels] > 0).all()
    assert torch.equal(feathered(mask, 0), mask)


def test_holes_are_filled_and_bays_are_not():
    ring = torch.zeros(2, 12, 14)
    ring[:, 2:9, 2:11] = 1
    ring[:, 4:7, 4:9] = 0
    ring[1, 5, 9:11] = 0  # a way out of the second one
    done = filled(ring)
    assert done[0].sum() == 7 * 9 and torch.equal(done[1], ring[1])


def test_a_way_with_many_turns_leads_out():
    maze = torch.ones(1, 9, 9)
    for row in range(1, 8, 2):
        maze[:, row, 1:8] = 0
    for row, column in ((2, 7), (4, 1), (6, 7)):
        maze[:, row, column] = 0
    closed, maze[:, 8, 1] = maze.clone(), 0
    assert torch.equal(filled(maze), maze) and filled(closed).all()


def test_filling_keeps_soft_values():
    mask = torch.full((1, 5, 5), 0.5)
    mask[0, 2, 2] = 0
    assert filled(mask)[0, 2].tolist() == [0.5, 0.5, 1, 0.5, 0.5]
