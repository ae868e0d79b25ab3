"""TRS against its formula written out, and what it holds in memory against the maps held whole."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from stillmotion.trainer.losses.trs import CHUNK, changes, trs_of_layer, trs_weights
from stillmotion.trainer.run.estimate import GIB, LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

CLIPS, FRAMES, HEADS, TOKENS, CHANNELS = 2, 4, 3, 6, 5
PER_QUERY, PER_HEAD = FRAMES * TOKENS, FRAMES * TOKENS**2


def random_layer(dtype=torch.float64, frames=FRAMES):
    """Queries and keys whose maps are peaked here and there."""
    shape = CLIPS * frames, HEADS, TOKENS, CHANNELS
    return tuple((2 * torch.randn(shape, dtype=dtype)).requires_grad_() for _ in "qk")


def distances(q, k):
    """‖A_j[query] - A_{j-1}[query]‖₁ one by one, of every clip, head, query and j."""

    def row(clip, frame, head, query):
        logits = [q[clip, frame, head, query] @ key / CHANNELS**0.5 for key in k[clip, frame, head]]
        likely = torch.stack(logits).exp()
        return likely / likely.sum()

    q, k = (t.unflatten(0, (CLIPS, FRAMES)) for t in (q, k))
    places = product(range(CLIPS), range(1, FRAMES), range(HEADS), range(TOKENS))
    return [(row(b, j, h, i) - row(b, j - 1, h, i)).abs().sum() for b, j, h, i in places]


def value_and_gradients(loss, q, k):
    return [loss, *torch.autograd.grad(loss, (q, k))]


@pytest.mark.parametrize("chunk", [1, 4 * PER_QUERY, 4 * PER_HEAD, CHUNK], ids=["query", "queries", "heads", "whole"])
@pytest.mark.parametrize("reduction", ["row_l1", "sum"])
def test_it_is_the_formula_in_value_and_gradient_however_it_is_cut(chunk, reduction):
    q, k = random_layer()
    each = distances(q, k)
    formula = sum(each) / {"row_l1": len(each), "sum": CLIPS}[reduction]
    ours = value_and_gradients(trs_of_layer(q, k, FRAMES, reduction, chunk), q, k)
    for got, expected in zip(ours, value_and_gradients(formula, q, k)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "chunk, shapes",
    [
        (1, [(1, 1)] * CLIPS * HEADS * TOKENS),
        (4 * PER_QUERY, [(1, 4), (1, 2)] * CLIPS * HEADS),
        (4 * PER_HEAD, [(4, TOKENS), (2, TOKENS)]),
        (CHUNK, [(CLIPS * HEADS, TOKENS)]),
    ],
)
def test_a_chunk_is_as_many_heads_or_queries_as_fit(chunk, shapes, monkeypatch):
    seen = []

    def watched(q, k):
        seen.append((q.shape[0], q.shape[2]))
        return changes(q, k)

    monkeypatch.setattr("stillmotion.trainer.losses.trs.changes", watched)
    loss = trs_of_layer(*random_layer(), FRAMES, chunk=chunk)
    assert seen == shapes
    loss.backward()
    assert sorted(seen) == sorted(2 * shapes), "each is computed once more in the backward pass"


def test_it_goes_from_0_where_frames_agree_to_2_where_they_share_no_key():
    q, k = random_layer()
    assert 0.3 < trs_of_layer(q, k, FRAMES) < 2
    q, k = (t[:1].expand(CLIPS * FRAMES, -1, -1, -1) for t in (q, k))
    assert trs_of_layer(q, k, FRAMES) < 1e-12
    keys = 100 * torch.eye(TOKENS, dtype=torch.float64).expand(CLIPS * FRAMES, HEADS, -1, -1)
    looking_on = torch.stack([keys[0].roll(frame, dims=-1) for frame in range(FRAMES)]).repeat(CLIPS, 1, 1, 1)
    torch.testing.assert_close(trs_of_layer(looking_on, keys, FRAMES), torch.tensor(2.0, dtype=torch.float64))


def test_a_clip_of_one_frame_has_0_with_gradients_of_0():
    q, k = random_layer(frames=1)
    got = value_and_gradients(trs_of_layer(q, k, 1), q, k)
    assert all(torch.equal(ours, torch.zeros_like(ours)) for ours in got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_changes_nothing_but_its_inputs(dtype):
    q, k = random_layer(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = trs_of_layer(q, k, FRAMES, chunk=4 * PER_QUERY)
    gradients = torch.autograd.grad(loss, (q, k))
    wide_q, wide_k = (t.detach().float().requires_grad_() for t in (q, k))
    expected = value_and_gradients(trs_of_layer(wide_q, wide_k, FRAMES, chunk=4 * PER_QUERY), wide_q, wide_k)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected[0])
    assert all(torch.equal(ours, theirs.to(dtype)) for ours, theirs in zip(gradients, expected[1:]))


def test_a_layer_that_is_recomputed_itself_gives_the_same():
    q, k = random_layer()
    loss = partial(trs_of_layer, frames=FRAMES, chunk=4 * PER_QUERY)
    recomputed = checkpoint(lambda q, k: loss(q.sin(), k.cos()), q, k, use_reentrant=False)
    plain = value_and_gradients(loss(q.sin(), k.cos()), q, k)
    assert all(torch.equal(*pair) for pair in zip(value_and_gradients(recomputed, q, k), plain))


def test_later_layers_weigh_more():
    assert trs_weights(9) == pytest.approx([i / 45 for i in range(1, 10)])
    assert trs_weights(9, "sum") == pytest.approx([i / 9 for i in range(1, 10)])
    assert sum(trs_weights(4)) == pytest.approx(1) and trs_weights(1) == [1]


def decoder_of_sd15(pixels, frames):
    """(rows, heads, tokens, channels) of the nine self-attentions, at 1/32, 1/16 and 1/8 of the picture's size."""
    sizes = ((32, 160), (16, 80), (8, 40))
    return [(frames, 8, (pixels // cell) ** 2, channels) for cell, channels in sizes for _ in range(3)]


def halves(shape, **options):
    return torch.zeros(shape, dtype=torch.float16, **options)


@pytest.mark.parametrize("pixels, frames, gib", [(256, 16, 0.80), (256, 24, 1.20), (512, 16, 12.8), (512, 24, 19.2)])
def test_maps_held_whole_take_what_the_docstring_says(pixels, frames, gib):
    with FakeTensorMode(), LiveBytes() as live:
        maps = [torch.softmax(halves(shape) @ halves(shape).mT, dim=-1) for shape in decoder_of_sd15(pixels, frames)]
    assert len(maps) == 9 and live.now / GIB == pytest.approx(gib, abs=0.005 * gib)


def peak_of_a_step(loss, shapes):
    """Bytes that the losses of all layers and their gradients hold at once, beside the queries and keys."""
    with FakeTensorMode():
        inputs = [(halves(shape, requires_grad=True), halves(shape, requires_grad=True)) for shape in shapes]
        with LiveBytes() as live:
            sum(loss(q, k) for q, k in inputs).backward()
    return live.peak


def test_a_training_step_holds_a_few_chunks_and_no_maps():
    def held_whole(q, k):
        maps = torch.softmax(q @ k.mT, dim=-1)
        return (maps[1:] - maps[:-1]).abs().mean()

    shapes = decoder_of_sd15(256, 24)
    ours = peak_of_a_step(partial(trs_of_layer, frames=24), shapes)
    keys_and_gradients = 8 * sum(map(math.prod, shapes))  # keys in float32, gradients of both in float16
    assert ours < keys_and_gradients + 5 * 4 * CHUNK
    assert ours < 0.15 * peak_of_a_step(held_whole, shapes)
