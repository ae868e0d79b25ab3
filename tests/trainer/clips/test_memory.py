"""A long clip takes the memory of its latents and of a few of its frames."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np, torch
from pathlib import Path
import av
from stillmotion.trainer.clips.cache import clip_latents
from stillmotion.trainer.clips.find import Source, ClipFormat
from stillmotion.trainer.clips.inspect import inspect
torch.set_num_threads(1)
path = Path(sys.argv[1])
with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=8)
    stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
    for k in range(8 * int(sys.argv[2])):
        frame = np.full((180, 320, 3), k % 200, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
def encode(vae, frames):
    return vae(torch.nn.functional.avg_pool2d(frames, 8))
source, vae = Source(path, "x"), torch.nn.Conv2d(3, 4, 1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
report = inspect(source, ClipFormat(8, 16, (512, 288)))
latents = clip_latents(source, 8, (512, 288), vae, path.parent / "cache", encode)
print(report.count, len(latents), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is counted in other units elsewhere")
def test_memory_does_not_grow_with_the_frames_of_a_clip(tmp_path):
    """400 frames of 512x288 are 177 MB of pixels, and 15 MB of latents."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "a.mp4", "50"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    count, frames, grown = map(int, ran.stdout.split())
    assert count == frames == 400 and grown < 260
