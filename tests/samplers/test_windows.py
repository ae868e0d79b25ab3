"""Windows of a clip and the fusion of their predictions: counts, the least-squares optimum, how far a seam falls."""

import math

import pytest
import torch
from stillmotion.samplers.windows import (
    FUSES,
    check_windows,
    coverage,
    fuse,
    turn,
    whole_window,
    window_count,
    windows_of,
)

LONG = [(80, 16, 2), (80, 16, 4), (81, 16, 4), (23, 8, 3), (17, 16, 15), (40, 5, 0), (5, 1, 0)]
CASES = [*LONG, (16, 16, 4), (3, 16, 4)]
each_fuse = pytest.mark.parametrize("name", sorted(FUSES))


def weights_of(name, windows, frames, overlap):
    return [FUSES[name](window, frames, overlap) for window in windows]


def fused(name, predict, frames, window, overlap):
    """The clip that a network which sees one window at a time makes."""
    windows = windows_of(frames, window, overlap)
    weights = weights_of(name, windows, frames, overlap)
    return fuse([predict(i, w) for i, w in enumerate(windows)], windows, weights, frames)


@pytest.mark.parametrize(("frames", "window", "overlap"), CASES)
def test_windows_cover_the_clip_and_the_last_one_ends_with_it(frames, window, overlap):
    windows = windows_of(frames, window, overlap)
    assert {frame for w in windows for frame in w} == set(range(frames))
    assert {len(w) for w in windows} == {min(window, frames)}
    assert windows[0].start == 0 and windows[-1].stop == frames
    regular = [w.start for w in windows[:-1]]
    assert regular == list(range(0, len(regular) * (window - overlap), window - overlap))


@pytest.mark.parametrize(("frames", "window", "overlap"), CASES)
def test_the_number_of_windows_is_the_formulas(frames, window, overlap):
    expected = 1 if frames <= window else 1 + math.ceil((frames - window) / (window - overlap))
    assert window_count(frames, window, overlap) == len(windows_of(frames, window, overlap)) == expected


def test_the_papers_numbers():
    counts = coverage(80, windows_of(80, 16, 2))
    assert window_count(80, 16, 2) == 6 and sum(count == 2 for count in counts) == 16 and max(counts) == 2


@pytest.mark.parametrize(("frames", "window", "overlap"), [c for c in LONG if c[2] <= c[1] / 2])
def test_a_frame_is_in_one_or_two_windows_save_in_the_last(frames, window, overlap):
    windows = windows_of(frames, window, overlap)
    counts = coverage(frames, windows)
    assert set(counts[: windows[-1].start]) <= {1, 2} and max(counts) <= 3


def test_windows_for_a_network_that_halves_time():
    assert [whole_window(window, 8) for window in (1, 8, 9, 14, 16)] == [8, 8, 16, 16, 16]
    assert whole_window(15, 1) == 15


@each_fuse
def test_the_fused_clip_is_the_least_squares_optimum(name):
    """T5.2: the gradient of Σ_i Σ_f w_i(f) ‖J_f - Φ_i,f‖² is zero there, here by autograd; it is convex."""
    frames, windows = 23, windows_of(23, 8, 3)
    weights = weights_of(name, windows, frames, 3)
    predictions = [torch.randn(8, 3, 2, dtype=torch.float64) for _ in windows]
    clip = fuse(predictions, windows, weights, frames).requires_grad_()
    squares = [
        (torch.tensor(w, dtype=torch.float64) * (clip[list(window)] - prediction).square().sum(dim=(1, 2))).sum()
        for prediction, window, w in zip(predictions, windows, weights)
    ]
    (gradient,) = torch.autograd.grad(sum(squares), clip)
    assert gradient.abs().max() < 1e-13


@each_fuse
def test_a_weighted_mean_frame_by_frame(name):
    frames, overlap, windows = 10, 3, windows_of(10, 6, 3)
    weights = weights_of(name, windows, frames, overlap)
    predictions = [torch.randn(2, 6, 5, dtype=torch.float64) for _ in windows]
    got = fuse(predictions, windows, weights, frames, dim=1)
    triples = list(zip(windows, weights, predictions))
    for frame in range(frames):
        seen = [(ws[frame - w.start], p[:, frame - w.start]) for w, ws, p in triples if frame in w]
        torch.testing.assert_close(got[:, frame], sum(w * p for w, p in seen) / sum(w for w, _ in seen))


@each_fuse
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_constant_prediction_stays_that_constant(name, dtype):
    """T5.3, without a rounding error."""
    constant = torch.randn(3, 2).to(dtype)
    clip = fused(name, lambda i, window: constant.expand(len(window), 3, 2), 41, 16, 11)
    assert torch.equal(clip, constant.expand(41, 3, 2))


@each_fuse
def test_a_network_that_sees_each_frame_alone_gives_the_same_with_windows(name):
    """T5.4, bit for bit, also where three windows overlap."""
    clip = torch.randn(41, 3, 2)
    for window, overlap in [(16, 2), (16, 4), (16, 11), (7, 6)]:
        assert torch.equal(fused(name, lambda i, w: clip[list(w)].sin(), 41, window, overlap), clip.sin())


def seam(name, overlap, window=16):
    """Largest squared difference of neighbouring frames where every one of six windows has an offset of its own."""
    frames = window + 5 * (window - overlap)
    motion = 0.005 * torch.arange(frames, dtype=torch.float64)  # what a seam vanishes into
    clip = fused(name, lambda i, w: motion[list(w)] + (-1.0) ** i, frames, window, overlap)
    return clip.diff().square().max()


@pytest.mark.parametrize(
    ("name", "overlap", "expected"),
    [("flat", o, 1 / 4) for o in (1, 2, 4)]
    + [(name, o, 1 / (o + 1) ** 2) for name in ("trapezoid", "pyramid") for o in (1, 2, 4)],
)
def test_how_far_a_seam_falls(name, overlap, expected):
    """T5.5: 1/4 for the plain mean whatever the overlap, 1/9 for linear weights at 2, against windows side by side."""
    ratio = seam(name, overlap) / seam("flat", 0)
    assert ratio == pytest.approx(expected, rel=0.05)


@each_fuse
def test_no_weights_cut_hard_from_one_window_to_the_next(name):
    """A window's share of the clip never changes by more than 1/2 from one frame to the next."""
    for frames, window, overlap in [(60, 16, 1), (60, 16, 2), (61, 16, 4), (50, 8, 7), (17, 16, 2)]:
        windows = windows_of(frames, window, overlap)
        weights = weights_of(name, windows, frames, overlap)
        assert all(w > 0 for ws in weights for w in ws)
        share = torch.zeros(len(windows), frames)
        for row, w, ws in zip(share, windows, weights):
            row[w.start : w.stop] = torch.tensor(ws)
        share /= share.sum(0)
        assert share.diff(dim=1).abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("frames", "window", "overlap", "message"),
    [
        (0, 16, 4, "A clip has 0 frames; it must have at least 1"),
        (-3, 16, 4, "A clip has -3 frames"),
        (80, 0, 0, "A window has 0 frames; it must have at least 1"),
        (80, 16, 16, "The overlap is 16 frames; windows of 16 frames allow 0 to 15"),
        (80, 16, -1, "The overlap is -1 frames"),
    ],
)
def test_windows_that_cannot_be_are_refused(frames, window, overlap, message):
    with pytest.raises(ValueError, match=message):
        windows_of(frames, window, overlap)


def test_a_bad_overlap_is_refused_however_short_the_clip():
    with pytest.raises(ValueError, match="The overlap is 20 frames"):
        windows_of(4, 16, 20)
    check_windows(16, 15)


@pytest.mark.parametrize("frames", [2, 7, 8, 16, 31])
def test_a_clip_that_loops_begins_everywhere_before_it_begins_anywhere_often(frames):
    begun = [turn(step, frames) for step in range(2 * frames)]
    assert begun[0] == 0 and set(begun) == set(range(frames))
    assert max(begun.count(frame) for frame in begun) <= 4
