"""Motion files of format 1 go on working: as they lie there, and with the pictures that they made."""

import json
import math

import pytest
import safetensors.torch
import torch
from motion_files import SLIM
from safetensors import safe_open
from stillmotion.networks.config import CrossFrames, InflationConfig, Recurrence, Temporal, Tokens
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import (
    MotionFileError,
    MotionInfo,
    _hash,
    read_motion_file,
    read_motion_info,
    write_motion_file,
)
from torch import nn

CONFIG = InflationConfig(Temporal(), CrossFrames(2), Recurrence(), tokens=Tokens(4))
FORMER = {"recurrence": "memory", "frame_attention": "frames"}


def former_name(name):
    for new, old in FORMER.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name.replace(".tokens.theta", ".tokens.gamma")


@pytest.fixture
def former(tmp_path):
    """A file as format 1 was written, and the tensors of the same inflation in the terms of format 2."""
    inflation = Inflation(CONFIG, SLIM)
    for parameter in inflation.parameters():
        nn.init.normal_(parameter, std=0.5)
    tensors = {name: t.clone() for name, t in sorted(inflation.state_dict().items())}
    write_motion_file(tmp_path / "new.safetensors", tensors, MotionInfo(CONFIG, SLIM))
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        own = json.loads(file.metadata()["stillmotion"])
    own |= {"format_version": 1, "config": {FORMER.get(part, part): o for part, o in own["config"].items()}}
    old = {former_name(n): (t / 2).exp() if n.endswith(".theta") else t for n, t in tensors.items()}
    old = dict(sorted(old.items()))
    own.pop("sha256")
    own["sha256"] = _hash(old, own)
    safetensors.torch.save_file(old, path := tmp_path / "old.safetensors", {"stillmotion": json.dumps(own)})
    return path, tensors


def test_a_file_of_format_1_is_read_in_the_terms_of_format_2(former):
    path, tensors = former
    before = path.read_bytes()
    info, found = read_motion_file(path, fits=SLIM)
    assert info.config == CONFIG == read_motion_info(path).config and found.keys() == tensors.keys()
    gates = [name for name in tensors if name.endswith(".theta")]
    assert gates and all(torch.equal(found[n], t) for n, t in tensors.items() if n not in gates)
    for name in gates:
        torch.testing.assert_close(found[name], tensors[name], atol=1e-6, rtol=0)
    assert path.read_bytes() == before


def test_a_weight_of_zero_stays_finite_and_says_nothing(former, tmp_path):
    path, _ = former
    with safe_open(path, "pt") as file:
        own, old = json.loads(file.metadata()["stillmotion"]), {name: file.get_tensor(name) for name in file.keys()}
    old |= {name: torch.zeros(()) for name in old if name.endswith(".tokens.gamma")}
    own.pop("sha256")
    own["sha256"] = _hash(old, own)
    safetensors.torch.save_file(old, path, {"stillmotion": json.dumps(own)})
    _, found = read_motion_file(path)
    assert all(math.isfinite(t) and t.exp() < 1e-37 for name, t in found.items() if name.endswith(".theta"))


def test_a_changed_file_of_format_1_is_refused_as_ever(former):
    path, _ = former
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MotionFileError, match="checksum differs"):
        read_motion_file(path)


def test_names_of_format_1_are_no_names_of_format_2(former, tmp_path):
    path, _ = former
    with safe_open(path, "pt") as file:
        own, old = json.loads(file.metadata()["stillmotion"]), {name: file.get_tensor(name) for name in file.keys()}
    safetensors.torch.save_file(old, path, {"stillmotion": json.dumps({**own, "format_version": 2})})
    with pytest.raises(MotionFileError, match="has a part 'frames'|has a part 'memory'"):
        read_motion_file(path)
