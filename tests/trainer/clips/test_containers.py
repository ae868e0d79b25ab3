"""Only the file that is named is opened, and what is damaged in it is said."""

import random

import av
import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.clips.find import Source, decode
from stillmotion.trainer.clips.shot import ClipError

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"'
    ' minBufferTime="PT1S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet'
    ' mimeType="video/mp4"><Representation id="1" bandwidth="1000" width="64" height="48"><BaseURL>{}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>"
)
PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile {}\n",
    "concat, safe off": "ffconcat version 1.0\noption safe 0\nfile {}\n",
    "hls": HLS,
    "hls, file:": HLS.replace("{}", "file://{}"),
    "hls, concat:": HLS.replace("{}", "concat:{}"),
    "hls, subfile": HLS.replace("{}", "subfile,,start,0,end,100000,,:{}"),
    "hls, master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{}\n",
    "dash": DASH,
    "dash, file:": DASH.replace("{}", "file://{}"),
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "asx": '<asx><entry><ref href="file://{}"/></entry></asx>',
}


@pytest.fixture
def others(tmp_path, write_video):
    """Videos that a playlist may name, in the folder and outside."""
    (tmp_path / "set/sub").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "set/sub"):
        write_video(folder / "other.mp4", [k / 8 for k in range(24)])
        write_video(folder / "other.ts", [k / 8 for k in range(24)], codec="mpeg4")
    return tmp_path


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ts", ".webm", ".mpd", ".avi"])
def test_a_playlist_opens_nothing(others, kind, suffix):
    for name in ("sub/other.mp4", "sub/other.ts", "../other.ts", str(others / "other.mp4")):
        path = others / f"set/clip{suffix}"
        path.write_text(PLAYLISTS[kind].replace("{}", name))
        with pytest.raises(ClipError, match="not a video"):
            decode(Source(path, path.name), 8)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_postscript_starts_no_ghostscript(tmp_path, suffix, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n%%EOF\n")
    with pytest.raises(ClipError, match="cannot be read as a picture"):
        decode(Source(path, path.name), 8)


def video(path, codec, pixels="yuv420p"):
    rng = np.random.default_rng(0)
    frames = np.full((24, 96, 128, 3), 60, np.uint8) + rng.integers(0, 60, (96, 128, 3), dtype=np.uint8)
    for k in range(24):
        frames[k, 20:50, 4 * k : 4 * k + 30] = 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name, codec, most", [("a.mp4", "libx264", 2), ("a.mkv", "mpeg4", 4), ("a.avi", "mjpeg", 6)])
def test_flipped_bits_are_seldom_taken_without_a_word(tmp_path, name, codec, most):
    """Of 20 files with three flipped bits each; `most` of them look other than they should, and nothing says so."""
    path = video(tmp_path / name, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    data, good, silent = path.read_bytes(), decode(Source(path, name), 8).frames.astype(int), 0
    random.seed(0)
    for _ in range(20):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[random.randrange(len(data) // 5, len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged)
        try:
            clip = decode(Source(path, name), 8)
        except ClipError:
            continue
        same = clip.frames.shape == good.shape and np.abs(clip.frames - good).mean((1, 2, 3)).max() < 1
        silent += not same and "damaged" not in clip.note
    assert silent <= most


def test_a_cover_in_a_song_is_no_clip_and_no_first_stream(tmp_path):
    from stillmotion.trainer.clips.kinds import is_clip

    Image.new("RGB", (64, 48)).save(tmp_path / "a.m4a", format="JPEG")
    assert not is_clip(tmp_path / "a.m4a")
