"""What training clips are told: masks that are drawn, and each task's clip."""

import pytest
import torch
from stillmotion.samplers.conditions import cells_known, condition, hole
from stillmotion.trainer.clips import known as tasks
from stillmotion.trainer.clips.batches import collate, rows
from stillmotion.trainer.clips.known import TASKS, KnownTasks, told
from stillmotion.trainer.clips.tubes import border, tube

FRAMES, SIZE = 5, (6, 10)
PIXELS = 8 * SIZE[0], 8 * SIZE[1]


class Blocks:
    """An autoencoder whose latents are the colours of cells, so that decoding and encoding give them back."""

    def encode(self, frames):
        cells = frames.unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).mean((2, 4))
        return torch.cat([cells, cells[..., :1]], -1).permute(0, 3, 1, 2) * 2 - 1

    def decode(self, latents):
        cells = (latents[:, :3].permute(0, 2, 3, 1) + 1) / 2
        return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)

    def offload(self):
        pass


def clip(seed=0):
    latents = torch.rand(FRAMES, 4, *SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latents[:, 3] = latents[:, 0]
    return latents


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", TASKS)
def test_c_is_the_clip_where_m_is_1_and_nothing_elsewhere(task):
    for seed in range(8):
        one = told(task, clip(), random(seed), Blocks())
        c, m = one.condition.split([4, 1], 1)
        assert set(m.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(c, one.latents * m, rtol=0, atol=1e-5)
        if task != "cinemagraph":
            assert torch.equal(one.latents, clip())


def test_each_task_knows_its_own_row_of_the_table():
    ms = {task: [told(task, clip(), random(seed), Blocks()).condition[:, 4] for seed in range(20)] for task in TASKS}
    assert not any(m.any() for m in ms["text_to_video"])
    assert all(m[0].all() and not m[1:].any() for m in ms["image_to_video"])
    frames = [m.flatten(1).mean(1) for m in ms["key_frames"]]
    assert {tuple(f.unique().tolist()) for f in frames} == {(0.0, 1.0)} and {int(f.sum()) for f in frames} == {
        1,
        2,
        3,
        4,
    }
    assert any(f[-1] for f in frames) and any(not f[0] for f in frames)
    assert all((m == m[0]).all() and 0 < m.mean() < 1 for m in ms["outpaint"])
    assert any((m[0] != m[-1]).any() for m in ms["inpaint"]) and all(m.mean() < 1 for m in ms["inpaint"])
    assert all(m[0].all() and (m[1:] == m[1]).all() for m in ms["cinemagraph"])


def test_around_a_cinemagraph_the_clip_itself_stands_still():
    one = told("cinemagraph", clip(), random(3), Blocks())
    still = one.condition[1, 4].bool()
    assert 0 < still.sum() < still.numel()
    torch.testing.assert_close(one.latents[:, :, still], clip()[:1, :, still].expand(FRAMES, -1, -1), rtol=0, atol=1e-5)
    moving = (one.latents[1:] - one.latents[:1]).abs().sum(1) > 1e-3
    assert moving.any() and not (moving & still).any()


def test_the_condition_is_made_as_sampling_makes_it():
    one, pixels = told("inpaint", clip(), random(4), Blocks()), Blocks()
    mask = tube(FRAMES, PIXELS, advanced(random(4), 0))
    given = hole(pixels.decode(clip()), mask)
    expected = torch.cat(condition(given, pixels.encode), 1)
    torch.testing.assert_close(one.condition, expected)
    assert torch.equal(one.condition[:, 4:], cells_known(1 - mask))


def advanced(generator, count):
    torch.rand(count, generator=generator)
    return generator


@pytest.mark.parametrize("moving", [True, False])
def test_tubes_are_masks_of_some_size_that_drift_or_stay(moving):
    masks = [tube(FRAMES, PIXELS, random(seed), moving) for seed in range(30)]
    assert all(set(m.unique().tolist()) <= {0.0, 1.0} and m.shape == (FRAMES, *PIXELS) for m in masks)
    areas = torch.stack([m.mean() for m in masks])
    assert areas.min() > 0.005 and areas.max() < 0.7 and areas.std() > 0.05
    drifting = [(m != m[0]).any().item() for m in masks]
    assert all(drifting) if moving else not any(drifting)


def test_borders_leave_a_rectangle_in_the_middle_half():
    for seed in range(30):
        inside = border(2, PIXELS, random(seed))[0] == 0
        ys, xs = inside.nonzero().unbind(1)
        assert inside.sum() == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
        assert 0.3 < inside.float().mean() < 1


def batch_of(seeds):
    one = lambda seed: rows(clip(seed), torch.zeros(FRAMES, 4, *SIZE), torch.tensor(5), torch.zeros(3, 2))  # noqa: E731
    batch = collate([one(seed) for seed in seeds])
    return tasks.replace(batch, seeds=tuple(seeds))


def test_shares_are_relative_and_draws_hang_on_the_seed_alone():
    shares = dict.fromkeys(TASKS, 0.0) | {"image_to_video": 0.2, "key_frames": 0.6}
    known = KnownTasks(shares, Blocks())
    drawn = [known.task_for(random(seed)) for seed in range(400)]
    assert set(drawn) == {"image_to_video", "key_frames"} and 70 < drawn.count("image_to_video") < 130
    together, alone = known(batch_of([1, 2])), known(batch_of([2]))
    assert torch.equal(together.condition[FRAMES:], alone.condition)
    assert together.condition.shape == (2 * FRAMES, 5, *SIZE)
    assert tasks.as_it_is(together) is together


def test_a_picture_has_no_condition():
    picture = rows(clip()[:1], torch.zeros(1, 4, *SIZE), torch.tensor(5), torch.zeros(3, 2))
    assert KnownTasks(dict.fromkeys(TASKS, 1.0), Blocks())(picture) is picture
