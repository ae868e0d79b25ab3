import pytest
import torch
from stillmotion.samplers.crops import Box, Crop, box_around, cut, resized, stitched


def masked(*pixels, frames=3, height=96, width=128):
    mask = torch.zeros(frames, height, width)
    for frame, row, column in pixels:
        mask[frame, row, column] = 1
    return mask


def clip(frames=3, height=96, width=128):
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))


def test_one_box_holds_what_is_made_in_every_frame_and_its_sides_are_whole_cells():
    mask = masked((0, 40, 30), (2, 50, 71))
    box = box_around(mask, margin=5)
    assert (box.width % 8, box.height % 8) == (0, 0)
    assert cut(mask, box).sum() == 2
    assert box.left <= 30 - 5 and box.left + box.width >= 72 + 5
    assert box.top <= 40 - 5 and box.top + box.height >= 51 + 5


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 95, 127), (1, 0, 127)])
def test_a_box_at_the_border_is_moved_inside(place):
    box = box_around(masked(place), margin=16)
    assert box.left >= 0 and box.top >= 0 and box.left + box.width <= 128 and box.top + box.height <= 96
    assert (box.width, box.height) == (40, 40)
    assert cut(masked(place), box).sum() == 1


def test_a_box_grows_to_the_shape_it_will_be_resized_to():
    box = box_around(masked((0, 40, 60)), margin=10, aspect=2.0)
    assert box.width / box.height == pytest.approx(2, abs=0.1)
    whole = box_around(torch.ones(1, 96, 128), margin=10, aspect=2.0)
    assert whole == Box(0, 0, 128, 96)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        box_around(masked(), margin=8)


def test_a_crop_that_was_not_resized_goes_back_bit_for_bit():
    whole, box = clip(), Box(16, 8, 64, 48)
    made = cut(whole, box)
    assert torch.equal(stitched(made, Crop(whole, box, (64, 48))), whole)


def test_a_clip_lands_in_the_box_and_nowhere_else():
    whole, box = clip(), Box(16, 8, 64, 48)
    out = stitched(torch.ones(3, 48, 64, 3), Crop(whole, box, (64, 48)))
    assert (cut(out, box) == 1).all()
    changed = (out != whole).any(-1)
    assert not changed[:, :8].any() and not changed[:, 56:].any() and not changed[:, :, :16].any()


def test_padding_is_cut_off_and_a_resized_crop_is_resized_back():
    whole, box = torch.full((2, 96, 128, 3), 0.2), Box(16, 8, 30, 20)
    made = torch.zeros(2, 64, 96, 3)  # the crop was 90 x 60 and padded to cells
    made[:, :60, :90] = 0.7
    out = stitched(made, Crop(whole, box, (90, 60)))
    assert cut(out, box).sub(0.7).abs().max() < 1e-6


def test_with_a_mask_what_was_not_made_stays_exact_however_the_crop_was_resized():
    whole, box = clip(), Box(16, 8, 64, 48)
    crop = Crop(whole, box, (128, 96))
    mask = torch.zeros(1, 96, 128)
    mask[:, 32:64, 32:96] = 1
    out = stitched(resized(cut(whole, box), crop.size) * 0, crop, mask)
    changed = (out != whole).any(-1)
    assert changed[:, 24 + 2 : 40 - 2, 32 + 2 : 64 - 2].all()
    assert changed.sum() < 3 * 20 * 36  # the mask and the soft edge that resizing made


def test_a_mask_is_feathered_outwards_inside_of_the_box():
    whole, box = torch.zeros(1, 96, 128, 3), Box(16, 8, 64, 48)
    mask = torch.zeros(1, 48, 64)
    mask[:, 16:32, 24:40] = 1
    out = stitched(torch.ones(1, 48, 64, 3), Crop(whole, box, (64, 48)), mask, feather=4)
    row = out[0, 8 + 24, :, 0]
    assert (row[16 + 24 : 16 + 40] == 1).all()
    assert (row[16 + 40 : 16 + 44].diff() < 0).all() and row[16 + 45] == 0


def test_a_still_becomes_the_ground_of_every_frame():
    still, box = clip(frames=1), Box(0, 0, 16, 16)
    out = stitched(torch.zeros(5, 16, 16, 3), Crop(still, box, (16, 16)))
    assert out.shape == (5, 96, 128, 3)
    assert torch.equal(out[4, 16:], still[0, 16:])


@pytest.mark.parametrize("shape", [(2, 48, 64, 3), (3, 40, 64, 3), (3, 48, 56, 3)])
def test_a_clip_of_another_crop_is_refused(shape):
    with pytest.raises(ValueError, match="cut from 3 frames in 64 x 48"):
        stitched(torch.zeros(shape), Crop(clip(), Box(16, 8, 64, 48), (64, 48)))


def test_the_mask_of_the_whole_frames_is_refused():
    with pytest.raises(ValueError, match="The mask is 128 x 96, and the crop 64 x 48"):
        stitched(torch.zeros(3, 48, 64, 3), Crop(clip(), Box(16, 8, 64, 48), (64, 48)), torch.ones(1, 96, 128))
