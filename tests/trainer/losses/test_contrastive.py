"""The decoupled contrastive loss against its formula, and a queue that forgets in order and comes back whole."""

import math
from collections import Counter

import pytest
import torch
from stillmotion.trainer.losses import contrastive
from stillmotion.trainer.losses.contrastive import (
    ENOUGH,
    ContrastiveHead,
    Queue,
    contrastive_loss,
    decoupled_contrastive,
    frame_pair,
)
from stillmotion.trainer.run.checkpoints import FORMAT, read_state, save_state
from torch.nn import functional as F

CHANNELS = 5


def on_the_sphere(*shape, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, CHANNELS, dtype=dtype), dim=-1)


def written_out(z1, z2, negatives, temperature):
    """The loss of one clip, its negatives (count, channels)."""
    positive = math.exp(z1 @ z2 / temperature)
    losses = [-math.log(positive / sum(math.exp(z @ q / temperature) for q in negatives)) for z in (z1, z2)]
    return sum(losses) / 2


def filled_queue(count=ENOUGH, **options):
    queue = Queue(CHANNELS, **options)
    queue.push(on_the_sphere(count))
    return queue


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("per_clip", [False, True])
def test_the_loss_is_the_formula(temperature, per_clip):
    z1, z2, negatives = on_the_sphere(3), on_the_sphere(3), on_the_sphere(3, 7) if per_clip else on_the_sphere(7)
    of_clip = negatives if per_clip else [negatives] * 3
    expected = [written_out(*clip, temperature) for clip in zip(z1, z2, of_clip)]
    assert decoupled_contrastive(z1, z2, negatives, temperature).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_perfect_pair_among_unrelated_clips():
    z, negatives = torch.eye(8)[:1], torch.eye(8)[1:]
    assert decoupled_contrastive(z, z, negatives).item() == pytest.approx(-8.0541, abs=1e-4)  # -10 + log 7


def test_the_loss_falls_as_one_frame_comes_to_the_other():
    basis = torch.eye(9, dtype=torch.float64)
    angles = torch.linspace(math.pi, 0, 20, dtype=torch.float64)
    z1, z2 = basis[:1].expand(20, -1), angles.cos()[:, None] * basis[0] + angles.sin()[:, None] * basis[1]
    losses = decoupled_contrastive(z1, z2, basis[2:])
    assert (losses.diff() < 0).all()
    torch.testing.assert_close(losses, math.log(7) - 10 * angles.cos())


def test_the_loss_rises_as_another_clip_comes_near():
    z, far = on_the_sphere(1), on_the_sphere(7)
    near = torch.cat([far[1:], z])
    assert decoupled_contrastive(z, z, near) > decoupled_contrastive(z, z, far)


def test_mixed_precision_changes_nothing():
    z1, z2, negatives = (on_the_sphere(count, dtype=torch.float32) for count in (3, 3, 7))
    plain = decoupled_contrastive(z1, z2, negatives)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoupled_contrastive(z1, z2, negatives), plain)


@pytest.mark.parametrize("cells, millions", [((4, 4), 31.1), ((8, 8), 109.8)])
def test_the_head_has_the_size_that_the_paper_counts(cells, millions):
    with torch.device("meta"):
        head = ContrastiveHead(1280, cells)
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_head_is_the_pseudo_code():
    head, h = ContrastiveHead(CHANNELS, cells=(2, 3)), torch.randn(4, CHANNELS, 3, 2)
    convolution, *linears = [layer for layer in head.layers if hasattr(layer, "weight")]
    z = F.silu(torch.einsum("bchw,ochw->bo", h, convolution.weight))
    for linear in linears[:2]:
        z = F.silu(z @ linear.weight.T + linear.bias)
    z = z @ linears[2].weight.T + linears[2].bias
    assert len(linears) == 3
    torch.testing.assert_close(head(h), z / z.square().sum(-1, keepdim=True).sqrt())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_projections_have_length_1_in_mixed_precision(dtype):
    with torch.autocast("cpu", dtype):
        z = ContrastiveHead(CHANNELS, (2, 3))(torch.randn(4, CHANNELS, 3, 2, dtype=dtype))
    torch.testing.assert_close(z.square().sum(-1), torch.ones(4))


def test_a_full_queue_serves_as_negatives():
    queue, z1, z2 = filled_queue(), on_the_sphere(3).float(), on_the_sphere(3).float()
    expected = decoupled_contrastive(z1, z2, queue.entries)
    assert torch.equal(contrastive_loss(z1, z2, queue), expected)


def test_the_other_clips_serve_while_the_queue_is_too_short():
    z1, z2 = on_the_sphere(3), on_the_sphere(3)
    others = [[j for j in range(3) if j != i] for i in range(3)]
    expected = [written_out(z1[i], z2[i], torch.cat([z1[o], z2[o]]), 0.1) for i, o in enumerate(others)]
    losses = contrastive_loss(z1, z2, filled_queue(ENOUGH - 1))
    assert losses.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_clip_alone_has_a_loss_of_0_that_reaches_every_weight():
    head = ContrastiveHead(CHANNELS, (2, 3))
    loss = contrastive_loss(*head(torch.randn(2, CHANNELS, 3, 2)).split(1), Queue(CHANNELS))
    loss.mean().backward()
    assert torch.equal(loss, torch.zeros(1))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters())


def test_the_queue_forgets_the_oldest_first():
    queue, rows = Queue(CHANNELS, size=40), torch.arange(100.0)[:, None].expand(-1, CHANNELS)
    for start, stop, oldest in ((0, 7, 0), (7, 40, 0), (40, 43, 3), (43, 100, 60)):
        queue.push(rows[start:stop])
        assert torch.equal(queue.entries, rows[oldest:stop])


def test_no_gradient_leads_into_the_queue():
    queue = Queue(CHANNELS)
    earlier, z1, z2 = (on_the_sphere(count).float().requires_grad_() for count in (ENOUGH, 2, 2))
    queue.push(earlier)
    contrastive_loss(z1, z2, queue).sum().backward()
    assert queue.entries.dtype == torch.float32 and not queue.entries.requires_grad
    assert earlier.grad is None and z1.grad.abs().min() > 0 and z2.grad.abs().min() > 0


def test_a_queue_on_another_device_serves_and_follows(monkeypatch):
    """One that was restored lies on the CPU, wherever the network computes."""
    queue, z = filled_queue(), torch.empty(2, CHANNELS, device="meta")
    monkeypatch.setattr(contrastive, "decoupled_contrastive", lambda z1, z2, negatives, _: negatives)
    assert contrastive_loss(z, z, queue).device == z.device
    queue.push(z)
    assert queue.entries.device == z.device


def test_a_restored_queue_goes_on_bit_for_bit(tmp_path):
    queue, restored = filled_queue(45, size=50), filled_queue(50, size=50)
    path = save_state(tmp_path, {"format": FORMAT, "step": 3, "queue": queue.state_dict()})
    saved, more = queue.entries.clone(), on_the_sphere(8)
    queue.push(more)
    restored.load_state_dict(read_state(path)["queue"])
    assert torch.equal(restored.entries, saved), "what was saved is not what came later"
    restored.push(more)
    assert len(restored) == 50 and torch.equal(restored.entries, queue.entries)


def test_a_save_holds_the_entries_and_no_more(tmp_path):
    queue = filled_queue(5000, size=ENOUGH)
    path = save_state(tmp_path, {"format": FORMAT, "step": 1, "queue": queue.state_dict()})
    assert path.stat().st_size < 4 * ENOUGH * CHANNELS + 3000


def test_a_queue_too_small_to_be_used_is_refused():
    with pytest.raises(ValueError, match="room for 31; it must have room for 32"):
        Queue(CHANNELS, size=31)


def test_pairs_are_two_different_frames_each_as_often_as_any_other():
    counts = Counter(frame_pair(4, seed) for seed in range(2400))
    assert set(counts) == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert all(140 < count < 260 for count in counts.values())  # 200 on average, spread 14


def test_one_frame_makes_no_pair():
    with pytest.raises(ValueError, match="two frames of a clip; 1 is too few"):
        frame_pair(1, 0)
