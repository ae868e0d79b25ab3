"""I3D's file is what FVD codes share, or is refused in one sentence."""

import pytest
import tiny_i3d
import torch
from stillmotion.trainer.base.i3d import load_i3d


def test_a_clip_is_seen_as_it_is_and_before_the_softmax(tmp_path):
    network = tiny_i3d.write(tmp_path / "i3d.pt")
    clip = torch.rand(16, 3, 224, 224) * 2 - 1
    expected = network.head(torch.nn.functional.adaptive_avg_pool3d(clip.transpose(0, 1)[None], (4, 2, 2)).flatten(1))
    torch.testing.assert_close(load_i3d(tmp_path / "i3d.pt").of_clip(clip), expected)


def test_what_is_no_i3d_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--fvd .*nothing.pt: there is no such file; it takes i3d_torchscript"):
        load_i3d(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no network")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    tiny_i3d.write(tmp_path / "small.pt", width=7)
    for name, said in (("text", ""), ("state", ""), ("small", r"it makes \(1, 7\) numbers, and I3D makes \(1, 400\)")):
        with pytest.raises(ValueError, match=f"--fvd .*{name}.pt cannot be used; it takes i3d_torchscript.*{said}"):
            load_i3d(tmp_path / f"{name}.pt")
