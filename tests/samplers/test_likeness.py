"""Motions are alike wherever, however fast and whenever they happen, and other motions are not."""

import numpy as np
import pytest
from stillmotion.samplers.likeness import likeness, motion_profile

SIZE = 96


def textured(seed=0):
    return np.random.default_rng(seed).uniform(90, 255, (20, 20, 3))


def clip(way, radius=14, middle=(48, 48), seed=0, frames=9):
    """A textured patch on grey whose middle is at `middle` + way(k), as large as `way` says, turned by its angle."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    patch, made = textured(seed), []
    for k in range(frames):
        dx, dy, scale, angle = way(k)
        u, v = (x - middle[0] - dx) / (radius * scale), (y - middle[1] - dy) / (radius * scale)
        u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        inside = u**2 + v**2 < 1
        row, column = ((np.clip(c, -1, 0.999) + 1) * 10 for c in (v, u))
        made.append(np.where(inside[..., None], smooth(patch, row, column), 60).astype(np.uint8))
    return made


def smooth(patch, row, column):
    i, j = np.clip(row.astype(int), 0, 18), np.clip(column.astype(int), 0, 18)
    a, b = (row - i)[..., None], (column - j)[..., None]
    top = patch[i, j] * (1 - b) + patch[i, j + 1] * b
    return top * (1 - a) + (patch[i + 1, j] * (1 - b) + patch[i + 1, j + 1] * b) * a


WAYS = {
    "right": lambda k: (2 * k - 8, 0, 1, 0),
    "down": lambda k: (0, 2 * k - 8, 1, 0),
    "grow": lambda k: (0, 0, 1 + 0.08 * k, 0),
    "turn": lambda k: (0, 0, 1, 0.15 * k),
    "swing": lambda k: (8 * np.sin(k * np.pi / 4), 0, 1, 0),
}


@pytest.fixture(scope="module")
def profiles():
    return {name: motion_profile(clip(way)) for name, way in WAYS.items()}


@pytest.mark.parametrize("name, axis", [("right", 0), ("down", 1), ("grow", 2), ("turn", 3)])
def test_each_motion_is_one_of_the_four_numbers(profiles, name, axis):
    mean = profiles[name].mean(0)
    assert mean.argmax() == axis and mean[axis] > 0.3
    assert np.abs(np.delete(mean, axis)).max() < 0.35 * mean[axis]


@pytest.mark.parametrize("name", WAYS)
def test_a_motion_is_like_itself_elsewhere_smaller_of_another_look_and_slower(profiles, name):
    slower = motion_profile(clip(lambda k: WAYS[name](0.6 * k), radius=11, middle=(40, 55), seed=5))
    assert likeness(profiles[name], slower) > 0.9
    assert likeness(profiles[name], profiles[name]) == pytest.approx(1)


@pytest.mark.parametrize("other", ["down", "grow", "turn"])
def test_another_motion_is_not_like_it(profiles, other):
    assert likeness(profiles["right"], profiles[other]) < 0.4
    assert likeness(profiles["right"], -profiles["right"]) < -0.9


def test_a_motion_that_begins_later_is_found(profiles):
    later = motion_profile(clip(lambda k: WAYS["swing"](k + 2)))
    assert likeness(profiles["swing"], later) > 0.9


def test_noise_is_about_a_half_and_what_stands_still_nothing(profiles):
    random = np.random.default_rng(0)
    found = [likeness(*random.normal(size=(2, 8, 4))) for _ in range(50)]
    assert 0.3 < np.mean(found) < 0.6 and np.max(found) < 0.9
    assert likeness(profiles["right"], np.zeros((8, 4))) == 0
