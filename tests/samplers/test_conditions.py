"""C and M of every task, masked before and after the encoder."""

import pytest
import torch
from stillmotion.samplers import conditions
from stillmotion.samplers.conditions import KnownPixels, cells_known, composited, condition, key_frames
from torch import nn

HEIGHT, WIDTH, FRAMES = 24, 40, 5


@pytest.fixture
def encode():
    """An encoder that looks beyond its cells, as a real one does: 24 pixels around each of 8."""
    layers = nn.Conv2d(3, 8, 9, padding=4), nn.SiLU(), nn.Conv2d(8, 4, 24, stride=8, padding=8)
    network = nn.Sequential(*layers).requires_grad_(False)
    return lambda frames: network(2 * frames.permute(0, 3, 1, 2) - 1)


@pytest.fixture
def video():
    return torch.rand(FRAMES, HEIGHT, WIDTH, 3)


def box(top, left, bottom, right):
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[top:bottom, left:right] = 1
    return mask


def test_text_to_video_is_zero_in_both(encode):
    c, m = condition(conditions.nothing(FRAMES, HEIGHT, WIDTH), encode)
    assert c.shape == (FRAMES, 4, 3, 5) and m.shape == (FRAMES, 1, 3, 5)
    assert not c.any() and not m.any()


def test_image_to_video_gives_frame_0_alone(encode, video):
    c, m = condition(conditions.still(video[0], FRAMES), encode, factor=0.5)
    torch.testing.assert_close(c[:1], 0.5 * encode(video[:1]))
    assert m[0].all() and not c[1:].any() and not m[1:].any()


def test_key_frames_lie_where_they_are_put_and_negative_places_count_from_the_end(encode, video):
    c, m = condition(key_frames(video[:3], [0, 2, -1], FRAMES, [1, 0.5, 1]), encode)
    assert m[:, 0, 0, 0].tolist() == [1, 0, 0.5, 0, 1]
    torch.testing.assert_close(c[[0, 2, 4]], encode(video[:3]) * torch.tensor([1, 0.5, 1]).view(3, 1, 1, 1))


@pytest.mark.parametrize(
    "positions, strengths, said",
    [
        ([0, 5], None, "at 5; a clip of 5 frames has -5 to 4"),
        ([4, -1], None, "Frame 4 is given twice"),
        ([0], None, "2 key frames, 1 positions"),
        ([0, 1], [1], "1 strengths"),
    ],
)
def test_key_frames_that_cannot_be_are_refused(video, positions, strengths, said):
    with pytest.raises(ValueError, match=said):
        key_frames(video[:2], positions, FRAMES, strengths)


def test_inpainting_gives_what_is_outside_of_the_hole(encode, video):
    c, m = condition(conditions.hole(video, box(8, 16, 16, 32)), encode)
    assert m[0, 0].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert not c[:, :, 1, 2:4].any() and c[:, :, 0].all()


def test_outpainting_gives_the_video_on_a_larger_canvas(encode, video):
    given = conditions.canvas(video, left=8, top=16, right=0, bottom=4)
    assert given.frames.shape == (FRAMES, HEIGHT + 20, WIDTH + 8, 3)
    assert torch.equal(given.frames[:, 16:-4, 8:], video) and given.known[:, 16:-4, 8:].all()
    assert given.known.sum() == FRAMES * HEIGHT * WIDTH
    c, m = condition(conditions.padded(given), encode)
    assert m[0, 0].tolist() == [[0] * 6, [0] * 6, *[[0, 1, 1, 1, 1, 1]] * 3, [0] * 6]
    with pytest.raises(ValueError, match="-1, 0, 0, 0"):
        conditions.canvas(video, -1, 0, 0, 0)


def test_a_cinemagraph_gives_frame_0_and_then_what_stands_still(encode, video):
    given = conditions.cinemagraph(video[0], box(8, 16, 16, 32), FRAMES)
    c, m = condition(given, encode)
    assert m[0].all() and (m[1:, 0, 1, 2:4] == 0).all() and m.sum() == 15 + 4 * 13
    torch.testing.assert_close(c[0], encode(video[:1])[0])
    unmasked, same = condition(given, encode, blank="as_given")
    torch.testing.assert_close(unmasked, encode(video[:1]).expand(FRAMES, -1, -1, -1))
    assert torch.equal(same, m)


@pytest.mark.parametrize("blank", ["zero", "vae_grey"])
def test_what_unknown_pixels_hold_never_comes_through(encode, video, blank):
    """The leak test: neither with the encoder's view beyond a cell, nor with soft masks."""
    mask = box(7, 10, 17, 30) + 0.5 * box(0, 36, 24, 40)
    other = torch.where(mask[None, ..., None] > 0, torch.rand_like(video), video)
    before, after = (condition(conditions.hole(v, mask), encode, blank=blank)[0] for v in (video, other))
    assert torch.equal(before, after)
    changed = video.clone()
    changed[:, 0, 0] += 0.1
    assert not torch.equal(condition(conditions.hole(changed, mask), encode, blank=blank)[0], before)


def test_one_unknown_pixel_opens_exactly_its_cell(video):
    known = torch.ones(2, HEIGHT, WIDTH)
    known[1, 15, 8] = 0
    cells = cells_known(known)
    assert (cells == 0).nonzero().tolist() == [[1, 0, 1, 1]]
    known[1, 15, 8] = 0.999
    assert torch.equal(cells_known(known), cells)


def test_inpainting_models_see_encoded_grey_in_the_hole(encode):
    c, m = condition(conditions.nothing(FRAMES, HEIGHT, WIDTH), encode, blank="vae_grey")
    torch.testing.assert_close(c, encode(torch.full((1, HEIGHT, WIDTH, 3), 0.5)).expand(FRAMES, -1, -1, -1))
    assert not m.any()


def test_only_frames_with_known_pixels_and_one_grey_one_are_encoded(encode, video):
    seen = []
    condition(conditions.still(video[0], FRAMES), lambda frames: seen.append(len(frames)) or encode(frames))
    assert seen == [2]


def test_a_size_of_no_whole_cells_is_refused_and_can_be_padded(encode, video):
    given = conditions.hole(video[:, :21, :37], box(0, 0, 8, 8)[:21, :37])
    with pytest.raises(ValueError, match="37 x 21 pixels; both must be multiples of 8"):
        condition(given, encode)
    whole = conditions.padded(given)
    assert whole.frames.shape[1:3] == (24, 40)
    assert torch.equal(whole.frames[:, 20], whole.frames[:, 23]) and whole.known[:, :, 36:].any()


def test_frames_and_masks_of_other_sizes_are_refused_with_both(video):
    with pytest.raises(ValueError, match="5 frames of 40 x 24 and a mask for 5 frames of 8 x 16"):
        conditions.hole(video, torch.zeros(16, 8))
    with pytest.raises(ValueError, match=r"frames are \(24, 40, 3\)"):
        KnownPixels.of(video[0], torch.zeros(24, 40))


def test_alpha_channels_are_dropped():
    assert conditions.hole(torch.rand(2, 8, 8, 4), torch.zeros(8, 8)).frames.shape[-1] == 3
    assert conditions.still(torch.rand(8, 8, 4), 2).frames.shape == (2, 8, 8, 3)


def test_composited_keeps_known_pixels_exactly_and_fades_within_the_feather(video):
    made, given = torch.rand_like(video), conditions.hole(video, box(8, 16, 16, 24))
    hard = composited(made, given)
    inside = given.mask.bool()
    assert torch.equal(hard[inside], made[inside]) and torch.equal(hard[~inside], video[~inside])
    soft = composited(made, given, feather=4)
    assert torch.equal(soft[inside], made[inside])
    far = box(4, 12, 20, 28) == 0
    assert torch.equal(soft[:, far], video[:, far])
    near = box(7, 15, 17, 25).bool() & ~inside[0]
    assert not torch.isclose(soft[:, near], video[:, near]).all()
    assert torch.equal(composited(made, conditions.hole(video, torch.zeros(HEIGHT, WIDTH)), 40), video)


def test_a_key_frame_that_need_not_hold_is_not_pasted(video):
    made = torch.rand_like(video)
    out = composited(made, key_frames(video[:2], [0, 3], FRAMES, [1, 0.7]))
    assert torch.equal(out[0], video[0]) and torch.equal(out[1:], made[1:])
