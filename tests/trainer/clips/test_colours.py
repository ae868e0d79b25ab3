"""Pixels are those that a player shows: FFmpeg's own conversion to sRGB, told what the file means."""

from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.clips.find import Source, decode
from stillmotion.trainer.clips.shot import ClipError

BARS = np.array([[200, 40, 60], [40, 200, 60], [60, 40, 200], [230, 230, 230], [20, 20, 20], [128, 128, 128]], np.uint8)
MATRIX = {1: "bt709", 6: "smpte170m", 9: "bt2020"}


def bars(width, height):
    return np.repeat(np.repeat(BARS[None], height, 0), width // len(BARS), 1)


def graph(frame, *steps):
    made = av.filter.Graph()
    source = made.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 8))
    made.link_nodes(source, *(made.add(*step) for step in steps), made.add("buffersink"))
    made.configure()
    made.push(frame)
    return made.pull()


def encoded(path, rgb, matrix, full=False, tagged=True, pixels="yuv444p", codec="libx264", trc=1, primaries=1):
    """A lossless video of equal frames, whose numbers are made by a matrix and a range that its marks tell or not."""
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    out = f"out_color_matrix={MATRIX[matrix]}:out_range={'pc' if full else 'tv'}"
    yuv = graph(frame, ("scale", f"{out}:flags=accurate_rnd+full_chroma_int+full_chroma_inp"), ("format", pixels))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options={"qp": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
        marks = (matrix, 2 if full else 1, trc, primaries) if tagged else (2, 0, 2, 2)
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = marks
        for _ in range(8):
            yuv.colorspace, yuv.color_range, yuv.pts = *marks[:2], None
            container.mux(stream.encode(yuv))
        container.mux(stream.encode(None))
    return path


def seen(path):
    return decode(Source(path, path.name), 8)


@pytest.mark.parametrize("matrix", MATRIX)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv444p", "yuv444p10le"])
def test_matrix_and_range_are_those_of_the_marks(tmp_path, matrix, full, pixels):
    rgb = bars(96, 48)
    clip = seen(encoded(tmp_path / "a.mkv", rgb, matrix, full, pixels=pixels))
    assert np.abs(clip.frames[0].astype(int) - rgb).max() <= 2
    assert ("10 bit to 8" in clip.note) == pixels.endswith("10le") and "no colour marks" not in clip.note


@pytest.mark.parametrize(
    "size, matrix", [((96, 48), 6), ((720, 576), 6), ((1278, 720), 1), ((1284, 536), 1), ((1920, 1080), 1)]
)
def test_without_marks_high_definition_is_709_and_the_rest_601(tmp_path, size, matrix):
    rgb = bars(*size)
    clip = seen(encoded(tmp_path / "a.mkv", rgb, matrix, tagged=False))
    assert np.abs(clip.frames[0].astype(int) - rgb).max() <= 2
    assert f"no colour marks, read as {'BT709' if matrix == 1 else 'BT601'}" in clip.note


@pytest.mark.parametrize("trc, name", [(16, "HDR10"), (18, "HLG")])
def test_hdr_is_refused_with_the_command_that_converts_it(tmp_path, trc, name):
    path = encoded(tmp_path / "a.mkv", bars(96, 48), 9, pixels="yuv444p10le", trc=trc, primaries=9)
    with pytest.raises(ClipError, match=f"{name}.*ffmpeg -i IN -vf zscale=.*tonemap.* OUT.mp4"):
        seen(path)


def test_wide_colours_are_brought_to_those_of_a_screen(tmp_path):
    """Grey stays; a red that means more in BT.2020 becomes stronger."""
    clip = seen(encoded(tmp_path / "a.mkv", bars(96, 48), 9, pixels="yuv444p10le", trc=14, primaries=9))
    red, grey = clip.frames[0][24, 8].astype(int), clip.frames[0][24, 88].astype(int)
    assert red[0] > 215 and red[1] < 30 and np.abs(grey - 128).max() <= 2
    assert "bt2020 colours to those of a screen" in clip.note


ALPHA = {"qtrle": ("a.mov", "argb"), "ffv1": ("a.mkv", "yuva444p"), "prores_ks": ("b.mov", "yuva444p10le")}


def transparent(path, codec, pixels, **options):
    rgba = np.zeros((48, 96, 4), np.uint8)
    rgba[..., :3] = (200, 40, 60)
    rgba[:, 48:, 3] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 48, pixels
        for _ in range(8):
            frame = graph(
                av.VideoFrame.from_ndarray(rgba, format="rgba"), ("scale", "out_range=tv"), ("format", pixels)
            )
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("codec", ALPHA)
def test_transparent_video_is_white_where_nothing_is(tmp_path, codec):
    name, pixels = ALPHA[codec]
    clip = seen(transparent(tmp_path / name, codec, pixels))
    assert clip.frames[0][24, 8].min() >= 250 and np.abs(clip.frames[0][24, 88].astype(int) - (200, 40, 60)).max() < 8
    assert "transparent pixels made white" in clip.note


def test_transparent_webm_is_white_where_nothing_is(tmp_path):
    path = tmp_path / "a.webm"
    clip = seen(transparent(path, "libvpx-vp9", "yuva420p", lossless="1"))
    assert len(clip.frames) == 8
    assert clip.frames[0][24, 8].min() >= 250 and np.abs(clip.frames[0][24, 88].astype(int) - (200, 40, 60)).max() < 8


def write_interlaced(path, width=128, height=64):
    """A bar that moves by a pixel a field: every second line is half a frame later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"qmax": "2"})
        stream.codec_context.flags |= 1 << 18 | 1 << 29  # interlaced DCT and motion estimation
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(50):
            planes = np.full((height, width, 3), 40, np.uint8)
            for line in range(height):
                at = 2 * k + (line % 2)
                planes[line, at : at + 24] = 220
            frame = av.VideoFrame.from_ndarray(planes, format="rgb24").reformat(format="yuv420p")
            frame = graph(frame, ("setfield", "tff"))
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_interlaced_video_that_changes_its_size_is_refused_and_not_stretched(tmp_path):
    parts = write_interlaced(tmp_path / "a.mpg"), write_interlaced(tmp_path / "b.mpg", 96, 80)
    (tmp_path / "c.mpg").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ClipError, match="frames change size"):
        seen(tmp_path / "c.mpg")


def test_the_fields_of_interlaced_video_are_joined(tmp_path):
    """What moves is combed until a player joins the fields."""
    write_interlaced(tmp_path / "a.mpg")
    clip = seen(tmp_path / "a.mpg")
    combed = [np.abs(f[1:-1:2].astype(int) - (f[:-2:2].astype(int) + f[2::2]) / 2).mean() for f in clip.frames]
    assert "interlaced" in clip.note and len(clip.frames) == 16
    assert max(combed[1:-1]) < 1.5


@pytest.mark.parametrize("mode, suffix", [("I;16", "png"), ("I;16", "tiff"), ("F", "tiff")])
def test_grey_pictures_of_many_bits_are_scaled(tmp_path, mode, suffix):
    for k in range(4):
        values = np.full((48, 64), 60.0)
        values[10:20, 4 * k : 4 * k + 10] = 200
        pixels = (values * 257).astype(np.uint16) if mode == "I;16" else (values / 255).astype(np.float32)
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"walk/{k}.{suffix}")
    clip = seen(tmp_path / "walk")
    assert sorted(set(clip.frames.ravel().tolist())) == [60, 200] and "to 8" in clip.note


def test_float_pictures_whose_white_nobody_knows_are_refused(tmp_path):
    for k in range(4):
        Image.fromarray(np.full((48, 64), 60.0 + k, np.float32)).save(tmp_path / f"{k}.tiff")
    with pytest.raises(ClipError, match="numbers reach from 60 to 60; .* from 0, black, to 1, white"):
        seen(tmp_path)
