"""The nodes that show how a clip moves."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from stillmotion.samplers.factors import appearance_similarity, latent_features
from stillmotion.trainer.clips.source import Source
from stillmotion.trainer.measures.clips import measure_clip


@pytest.fixture
def measure(comfyui, tmp_path, monkeypatch):
    """Measures a clip as the host does; gives the outputs by name and what the node shows."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    from stillmotion.nodes.inspect import MeasureMotion

    def run(images, **optional):
        output = MeasureMotion.execute(images, **optional)
        names = [o.id for o in MeasureMotion.define_schema().outputs]
        return SimpleNamespace(**dict(zip(names, output.result)), **output.ui)

    return run


def slice_of(images, position=0.5, axis="row", thickness=1):
    from stillmotion.nodes.inspect import XTSlice

    return XTSlice.execute(images, position, axis, thickness).result[0]


def texture(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return torch.from_numpy(cv2.GaussianBlur(noise, (0, 0), 2) / 255.0).float().sub(0.5).mul(5).add(0.5).clamp(0, 1)


def shifting(pixels, frames=5, size=(80, 120)):
    """Frames of a texture that moves to the left by so many pixels each time."""
    whole = texture(size[0], size[1] + pixels * frames)
    return torch.stack([whole[:, pixels * k : pixels * k + size[1]] for k in range(frames)])


@pytest.mark.parametrize("pixels", [1, 3, 6])
def test_the_flow_is_the_distance_in_pixels(measure, pixels):
    assert measure(shifting(pixels)).mean_flow == pytest.approx(pixels, rel=0.1)


def test_a_still_clip_does_not_move(measure):
    measured = measure(texture(40, 60).expand(4, -1, -1, -1), latent={"samples": torch.ones(4, 4, 5, 7)})
    assert measured.mean_flow < 0.01 and measured.motion_factor == 0


@pytest.mark.parametrize("source", ["vae", "latent"])
def test_the_motion_factor_is_that_of_scaled_latents(measure, source):
    raw = torch.randn(5, 4, 10, 15)
    seen = []
    vae = SimpleNamespace(encode=lambda images: seen.append(images) or raw)
    images = torch.cat([shifting(1), torch.rand(5, 80, 120, 1)], dim=-1)  # with transparency
    measured = measure(images, **{source: vae if source == "vae" else {"samples": raw}})
    factor = 7168 * 0.18215 * np.mean([(a - b).abs().mean().item() for a, b in zip(raw, raw[1:])])
    assert measured.motion_factor == pytest.approx(factor, rel=1e-5)
    assert f"motion factor {factor:.0f}, appearance factor" in measured.text[0]
    assert (source == "latent") == (seen == []) and all(torch.equal(s, images[..., :3]) for s in seen)


def test_without_latents_only_the_motion_factor_is_blocked(measure):
    measured = measure(shifting(1))
    assert "connect a VAE or a LATENT" in measured.motion_factor.message
    assert "motion factor not measured" in measured.text[0]
    assert measured.mean_flow > 0.5 and measured.plot.shape == (1, 320, 640, 3)


def test_transparency_counts_nowhere(measure):
    images = shifting(2)
    measured = measure(torch.cat([images, torch.rand(5, 80, 120, 1)], dim=-1))
    plain = measure(images)
    assert measured.mean_flow == plain.mean_flow and torch.equal(measured.plot, plain.plot)


def test_a_jump_is_named(measure):
    images = shifting(1, frames=8)
    images[5:] = 1 - images[5:]
    measured = measure(images)
    assert "jumps after frame 5" in measured.remarks and measured.remarks in measured.text[0]
    curve = (images.diff(dim=0) ** 2).mean((1, 2, 3))
    assert measured.seam == pytest.approx((curve.max() / curve.median()).item(), rel=0.01)
    loop = ((images[0] - images[-1]) ** 2).mean() / curve.median()
    assert measured.loop_seam == pytest.approx(loop.item(), rel=0.01)


def test_the_numbers_are_those_that_evaluate_has_of_the_same_frames(measure, tmp_path):
    images = shifting(3, frames=6) * torch.linspace(1, 0.8, 6)[:, None, None, None]
    levels = (images * 255).round().byte()
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(levels.numpy()):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{number}.png")
    evaluated = measure_clip(Source(tmp_path / "clip", "clip"), None, tmp_path / "cache").numbers
    measured = measure(levels / 255)
    assert measured.warping_error == evaluated.warping_error > 0
    assert (measured.seam, measured.loop_seam) == (evaluated.seam, evaluated.loop)
    assert measured.mean_flow == pytest.approx(evaluated.motion * 120 / 100)
    assert f"motion {evaluated.motion:.2f} % of the longer side a frame" in measured.text[0]


def test_of_a_still_clip_the_ratios_are_blocked_and_the_remark_says_why(measure):
    measured = measure(texture(40, 60).expand(4, -1, -1, -1))
    assert measured.remarks == "hardly moves" and measured.warping_error == 0
    for blocked in (measured.seam, measured.loop_seam):
        assert "it stands still" in blocked.message


def test_a_plot_is_shown_and_its_curve_is_where_it_belongs(measure, tmp_path):
    from stillmotion.nodes.plot import BELOW, HEIGHT, LEFT, RIGHT, WIDTH, line_plot

    measured = measure(shifting(1))
    (shown,) = measured.images
    assert (tmp_path / shown["subfolder"] / shown["filename"]).is_file()

    plot = line_plot([0, 0, 2, 0], "title", "x", "y")[0]
    blue = (plot[..., 2] - plot[..., 0] > 0.4).nonzero()
    top, place = blue[blue[:, 0].argmin()].tolist()
    assert place == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) * 2 / 3, abs=3) and top > 40
    left = blue[blue[:, 1] < LEFT + 3]
    assert left[:, 0].float().mean() == pytest.approx(HEIGHT - BELOW, abs=1)


@pytest.mark.parametrize("value, expected", [(0, 1), (0.0123, 0.02), (0.5, 0.5), (3, 5), (7, 10), (1000, 1000)])
def test_the_axis_ends_at_a_round_number(comfyui, value, expected):
    from stillmotion.nodes.plot import round_up

    assert round_up(value) == pytest.approx(expected)


def test_one_frame_moves_by_nothing(measure):
    measured = measure(texture(16, 16)[None], latent={"samples": torch.randn(1, 4, 2, 2)})
    assert measured.motion_factor == 0 and measured.mean_flow == 0


def test_two_frames_are_a_clip(measure):
    assert measure(shifting(1, frames=2)).mean_flow == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (8, 64), (64, 8)])
def test_tiny_frames_are_measured(measure, size):
    assert measure(torch.rand(3, *size, 3)).mean_flow >= 0


@pytest.mark.parametrize("size", [(16, 16), (16, 500), (500, 16)])
def test_the_smallest_frames_are_measured(measure, size):
    assert measure(shifting(1, size=size)).mean_flow == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(
    "images, said",
    [
        (torch.rand(0, 32, 32, 3), "no frames"),
        (torch.full((2, 32, 32, 3), np.nan), "NaN"),
        (torch.rand(2, 32, 32, 1), r"The IMAGE is \(2, 32, 32, 1\); needed are \(frames, height, width, channels\)"),
        (torch.rand(32, 32, 3), r"The IMAGE is \(32, 32, 3\); needed are"),
    ],
)
def test_no_frames_and_no_colours_and_no_numbers_are_refused(measure, images, said):
    for node in (measure, slice_of):
        with pytest.raises(ValueError, match=said):
            node(images)


@pytest.mark.parametrize(
    "shape, said",
    [
        ((5, 16, 8, 8), "connect an SD1.5 VAE alone"),
        ((1, 4, 5, 8, 8), "Stable Diffusion's"),
        ((4, 4, 8, 8), "4 frames"),
    ],
)
def test_latents_of_other_kinds_and_lengths_are_refused(measure, shape, said):
    with pytest.raises(ValueError, match=said):
        measure(shifting(1), latent={"samples": torch.zeros(shape)})


def test_without_opencv_it_says_what_to_install(measure, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        measure(shifting(1))


def test_a_slice_is_a_picture_of_frames_by_width_or_height_by_frames(comfyui):
    images = torch.rand(5, 7, 9, 3)
    assert torch.equal(slice_of(images, 1.0), torch.stack([frame[6] for frame in images])[None])
    assert torch.equal(slice_of(images, 0.0, "column"), torch.stack([frame[:, 0] for frame in images], dim=1)[None])


def test_each_frame_of_a_slice_is_as_thick_as_asked(comfyui):
    images = torch.rand(5, 7, 9, 4)
    assert torch.equal(slice_of(images, thickness=3), slice_of(images).repeat_interleave(3, dim=1))
    assert torch.equal(
        slice_of(images, axis="column", thickness=3), slice_of(images, axis="column").repeat_interleave(3, 2)
    )
    assert slice_of(images[:1]).shape == (1, 1, 9, 4)


def test_motion_draws_slanted_lines(comfyui):
    """A texture that moves left by 3 pixels a frame is in the next line of the slice 3 pixels further left."""
    rows = slice_of(shifting(3))[0]
    assert torch.equal(rows[1:, :-3], rows[:-1, 3:])


@pytest.mark.parametrize("source", ["latent", "clip_vision", "both"])
def test_the_appearance_factor_is_of_the_image_model_or_else_of_the_latents(measure, source):
    raw, images = torch.randn(4, 4, 10, 15).cumsum(0), shifting(3, frames=4)
    vision = SimpleNamespace(encode_image=lambda x, crop: {"image_embeds": x.mean((1, 2))}, model=object())
    given = {"latent": {"samples": raw}, "clip_vision": vision}
    measured = measure(images, **(given if source == "both" else {source: given[source]}))
    features = latent_features(raw * 0.18215) if source == "latent" else images.mean((1, 2))
    similarity = appearance_similarity(features)
    factor = 1 - similarity[0, 3].item()
    assert measured.appearance_factor == pytest.approx(factor, abs=1e-6)
    rows = [[float(number) for number in line.split()] for line in measured.similarity.split("\n")]
    torch.testing.assert_close(torch.tensor(rows), similarity, rtol=0, atol=6e-4)
    kind = "latent" if source == "latent" else "clip"
    assert f"appearance factor {factor:.3f} ({kind} features)" in measured.text[0]
    assert isinstance(measured.motion_factor, float) == (source != "clip_vision")


def test_without_latents_and_image_model_the_look_is_blocked_and_not_told(measure):
    measured = measure(shifting(1))
    for blocked in (measured.appearance_factor, measured.similarity):
        assert "connect a CLIP_VISION, a VAE or a LATENT" in blocked.message
    assert "appearance" not in measured.text[0]


def test_new_outputs_come_behind_those_of_older_graphs(measure):
    from stillmotion.nodes.inspect import MeasureMotion

    schema = MeasureMotion.define_schema()
    first = ["motion_factor", "mean_flow", "plot", "appearance_factor", "similarity"]
    assert [o.id for o in schema.outputs][:5] == first
    assert [i.id for i in schema.inputs][:3] == ["images", "vae", "latent"]
