import math
from itertools import combinations

import numpy as np
import pytest
import torch
from stillmotion.trainer.toy.drawing import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    all_scenes,
    coverage,
    draw,
    draw_clip,
    random_pictures,
    random_places,
    split_scenes,
    to_bytes,
)
from stillmotion.trainer.toy.judge import accuracy, scene_in
from stillmotion.trainer.toy.textures import rich_pictures

SIZE = (48, 64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_pair_of_words_is_seen_and_the_rest_is_held_out():
    seen, held_out = split_scenes()
    assert sorted(seen + held_out) == sorted(all_scenes()) and len(held_out) == 40
    for first, second in combinations(range(3), 2):
        pairs = {(scene[first], scene[second]) for scene in all_scenes()}
        assert {(scene[first], scene[second]) for scene in seen} == pairs


def test_captions_use_the_right_article():
    assert Scene("red", "circle", "blue").caption == "a red circle on a blue background"
    assert Scene("orange", "ring", "orange").caption == "an orange ring on an orange background"


def test_a_seed_names_a_picture():
    first, again = (random_pictures(all_scenes(), 5, SIZE, seeded(3)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(rich_pictures(3, SIZE, seeded(3)), rich_pictures(3, SIZE, seeded(3)))


@pytest.mark.parametrize(
    ("shape", "area"), [("circle", math.pi), ("square", 1.76**2), ("ring", math.pi * (1 - 0.44**2))]
)
def test_shapes_cover_their_area_to_a_fraction_of_a_pixel(shape, area):
    radius = 0.31
    covered = coverage([shape], torch.tensor([[0.43, 0.52]]), torch.tensor([radius]), SIZE)[0]
    assert covered.sum().item() == pytest.approx(area * (radius * min(SIZE)) ** 2, rel=0.005)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_line_one_pixel_wide_is_mixed(shape):
    radius = 0.35 * 96
    covered = coverage([shape], torch.tensor([[0.5, 0.5]]), torch.tensor([0.35]), (96, 96))[0]
    mixed = ((covered > 0) & (covered < 1)).sum().item()
    longest_outline = 2 * math.pi * (1 + 0.44)  # the ring's, in radii
    assert 4 * radius < mixed < 2**0.5 * longest_outline * radius


def test_random_shapes_lie_within_the_picture():
    centres, radii = random_places(500, seeded())
    room = torch.minimum(centres, 1 - centres).amin(1) - radii
    assert room.min() > 0 and radii.min() >= 0.27 and radii.max() <= 0.4


def test_no_spread_puts_every_shape_in_the_middle():
    centres, radii = random_places(50, seeded(), spread=0)
    assert (centres == 0.5).all() and radii.unique().tolist() == pytest.approx([0.335])


def test_the_judge_reads_what_was_drawn():
    pictures, scene = random_pictures(all_scenes(), 40, (64, 64), seeded())
    noisy = pictures + 0.1 * torch.randn(pictures.shape)
    assert accuracy(noisy, [all_scenes()[i] for i in scene]) == {"colour": 1, "shape": 1, "ground": 1}


def test_the_judge_reads_an_empty_picture():
    assert scene_in(torch.ones(3, 32, 32)).ground == "white"


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_repeats_after_its_period_and_not_before(motion):
    frames, caption = draw_clip(all_scenes()[9], motion, 20, SIZE, period=12)
    assert frames.shape == (20, *SIZE, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(frames[12:].astype(int), frames[:8], atol=1)
    changes = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert changes.min() > 0.1
    assert caption == f"{all_scenes()[9].caption}, {MOTIONS[motion].words}"


def test_swinging_moves_along_the_width_alone():
    scene = Scene("white", "circle", "black")
    frames, _ = draw_clip(scene, "swing", 16, SIZE)
    light = frames.astype(float).mean(-1) - COLOURS["black"][0]
    down, across = (np.arange(n) + 0.5 for n in SIZE)
    rows = light.sum(2) @ down / light.sum((1, 2))
    columns = light.sum(1) @ across / light.sum((1, 2))
    assert np.ptp(rows) < 0.2 and np.ptp(columns) > 0.3 * SIZE[1]


def test_an_unknown_motion_is_refused():
    with pytest.raises(ValueError, match="no motion 'jump'; choose one of swing, grow, orbit"):
        draw_clip(all_scenes()[0], "jump", 2, SIZE)


def test_bytes_hold_the_palette_exactly():
    scene = Scene("orange", "square", "purple")
    frame = to_bytes(draw([scene], torch.tensor([[0.5, 0.5]]), torch.tensor([0.3]), SIZE))[0]
    assert tuple(frame[24, 32]) == COLOURS["orange"] and tuple(frame[0, 0]) == COLOURS["purple"]
