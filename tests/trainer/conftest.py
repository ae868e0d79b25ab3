import shutil
import tempfile
from fractions import Fraction

import numpy as np
import pytest


def numbered(count, size=(64, 48)):
    """Frames whose brightness says which one it is: 10, 12, 14, ..."""
    width, height = size
    return np.broadcast_to(10 + 2 * np.arange(count)[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


@pytest.fixture
def write_video():
    """Writes frames (by default `numbered`) that appear at the given seconds, without loss."""
    av = pytest.importorskip("av")

    def write(path, times, frames=None, codec="libx264rgb", rate=25, aspect=None, title=None):
        frames = numbered(len(times)) if frames is None else frames
        options = {"qp": "0"} if codec == "libx264rgb" else {}
        pixels = {"libx264rgb": "rgb24", "mpeg4": "yuv420p"}.get(codec, "bgr0")
        with av.open(str(path), "w") as container:
            container.metadata.update({"title": title} if title else {})
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
            stream.codec_context.time_base = stream.time_base = Fraction(1, 9000)
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            for time, pixels in zip(times, frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = round(9000 * time), Fraction(1, 9000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture
def numbers():
    """The inverse of `numbered`: which frame each one is."""
    return lambda frames: np.round((frames.mean((1, 2, 3)) - 10) / 2).astype(int).tolist()


def drawn(number, frames=8):
    """A square that moves, in the brightness of its number."""
    clip = np.full((frames, 16, 32, 3), 20 * number + 10, np.uint8)
    for k in range(frames):
        clip[k, 4:12, 2 * k : 2 * k + 8] = 220
    return clip


@pytest.fixture
def clip_bytes(tmp_path):
    """What is in a file of a drawn clip."""
    pictures = pytest.importorskip("stillmotion.trainer.show.pictures")

    def make(number, frames=8):
        pictures.write_mp4(drawn(number, frames), tmp_path / "drawn.mp4", 8)
        return (tmp_path / "drawn.mp4").read_bytes()

    return make


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def base_and_clips(tmp_path_factory):
    import tiny_run

    folder = tmp_path_factory.mktemp("base")
    tiny_run.write_base_and_clips(folder)
    return folder


@pytest.fixture(scope="module")
def place(base_and_clips, tmp_path_factory):
    """A folder with a base and three clips, for commands to run in."""
    return shutil.copytree(base_and_clips, tmp_path_factory.mktemp("place"), dirs_exist_ok=True)


@pytest.fixture(scope="session")
def on_two_processes(tmp_path_factory):
    """Runs a command on two processes that share the work in one way, see `two_processes.Pair.run`."""
    import two_processes

    pairs = {}

    def run(way, words, **changes):
        if way not in pairs:
            pairs[way] = two_processes.Pair(way, tmp_path_factory.mktemp("processes"))
        return pairs[way].run(words, **changes)

    yield run
    for pair in pairs.values():
        pair.stop()
