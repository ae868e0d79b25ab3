"""Motion files of format 1 go on working: as they lie there, and with the pictures that they made."""

import hashlib
import json
import math
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from motion_files import SLIM, contents
from stillmotion.networks.clip import Clip
from stillmotion.networks.config import CrossFrames, InflationConfig, Recurrence, Temporal, Tokens
from stillmotion.networks.inflation import Attached, Inflation, after_cross_attention, frame_tokens
from stillmotion.networks.motion_file import MotionFileError, read_motion_file, read_motion_info
from torch import nn

CONFIG = InflationConfig(Temporal(), CrossFrames(2), Recurrence("paper_rnn"), tokens=Tokens(4))
ATTN2 = "input_blocks.1.1.transformer_blocks.0.attn2"
GATES = [
    f"{site}.transformer_blocks.0.attn2.tokens.gamma"
    for site in ("input_blocks.1.1", "output_blocks.0.1", "output_blocks.1.1")
]

DESCRIPTION = {
    "format_version": 1,
    "base_family": "sd15",
    "config": {
        "temporal": {
            **{"heads": 8, "positional": True, "norm_scope": "frame", "middle": False},
            **{"levels": [["attention"]], "layers": 2, "narrow": False},
        },
        "frames": {"heads": 2},
        "memory": {"mode": "paper_rnn"},
        "tokens": {"frames": 4, "count": 3, "neutral": True},
    },
    "structure": {"levels": [{"width": 32, "down": [1], "up": [1, 1]}], "middle": 0, "context": 768},
    **{"schedule": "linear", "prediction": "epsilon", "frames": 4, "fps": 8.0, "width": 64, "height": 48},
    **{"captions": ["a ball rolls"], "options": {"steps": 3}, "versions": {}, "positions": 32},
}
"""Of a file of format 1, as it stands in its metadata beside the checksum."""


def former_name(name):
    """The name that format 1 has for a tensor, written out here once more."""
    name = name.replace(".attn1.recurrence.", ".attn1.memory.").replace(".frame_attention.", ".frames.")
    return name.replace(".tokens.theta", ".tokens.gamma")


def former_checksum(tensors, description):
    """SHA-256 of the description with sorted keys, then of each tensor's name and bytes in the order of names."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_former(path, tensors, description=DESCRIPTION):
    own = {**description, "sha256": former_checksum(tensors, description)}
    safetensors.torch.save_file(tensors, path, {"stillmotion": json.dumps(own)})
    return path


def former_tensors(dtype=torch.float32):
    """Random numbers under the names of format 1, gates of either sign among them."""
    shapes = {former_name(name): t.shape for name, t in Inflation(CONFIG, SLIM).state_dict().items()}
    tensors = {name: (0.03 * torch.randn(shape)).to(dtype) for name, shape in shapes.items()}
    return tensors | {name: torch.tensor(gate, dtype=dtype) for name, gate in zip(GATES, (0.7, -0.4, 0.03))}


@pytest.fixture
def former(tmp_path):
    tensors = former_tensors()
    return write_former(tmp_path / "old.safetensors", tensors), tensors


def test_a_file_of_format_1_is_read_in_the_terms_of_format_2(former):
    path, tensors = former
    before = path.read_bytes()
    assert any(".memory." in name for name in tensors) and any(".frames." in name for name in tensors)
    info, found = read_motion_file(path, fits=SLIM)
    assert info.config == CONFIG == read_motion_info(path).config
    assert found.keys() == Inflation(CONFIG, SLIM).state_dict().keys()
    for name, tensor in found.items():
        if name.endswith(".theta"):
            torch.testing.assert_close(tensor.exp(), tensors[former_name(name)].square(), atol=0, rtol=1e-6)
        else:
            assert torch.equal(tensor, tensors[former_name(name)])
    assert path.read_bytes() == before


def softmax_with_bias(project, normed, text, tokens, bias):
    """Attention to text and tokens together, the logits of the tokens with `bias` added."""
    context = torch.cat([text, tokens], dim=1)
    q, k, v = (
        t.unflatten(-1, (4, -1)).transpose(1, 2)
        for t in (project.to_q(normed), project.to_k(context), project.to_v(context))
    )
    logits = q @ k.mT / q.shape[-1] ** 0.5
    logits = torch.cat([logits[..., : text.shape[1]], logits[..., text.shape[1] :] + bias], dim=-1)
    return project.to_out[0]((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.7, -0.4, 0.001**0.5, 0.0])
def test_a_file_of_format_1_makes_the_pictures_that_it_made(tmp_path, gamma, dtype):
    """Its tokens had the logarithm of gamma² added to their logits, gamma as it is rounded in the file."""
    tensors = former_tensors(dtype)
    tensors[f"{ATTN2}.tokens.gamma"] = gate = torch.tensor(gamma, dtype=dtype)
    info, found = read_motion_file(write_former(tmp_path / "old.safetensors", tensors))
    made = Inflation(info.config, info.structure).double()
    made.load_state_dict(found)
    text, normed, clip = torch.randn(4, 77, 768).double(), torch.randn(4, 6, 32).double(), Clip.of(4)
    q, k, v, out = (nn.Linear(width, 32).double() for width in (32, 768, 768, 32))
    project = SimpleNamespace(heads=4, to_q=q, to_k=k, to_v=v, to_out=nn.ModuleList([out]))
    rows = frame_tokens(text, attached := [Attached(made)], clip)
    plain = softmax_with_bias(project, normed, text, rows[0][:, :0], 0.0)
    got = after_cross_attention(plain, normed, text, rows, attached, ATTN2, clip, project)
    then = softmax_with_bias(project, normed, text, rows[0], gate.double().square().log())
    torch.testing.assert_close(got, then, atol=1e-6, rtol=0)
    if gamma:
        assert (got - then).norm() < 1e-5 * (then - plain).norm(), "however little the tokens add"


def test_a_weight_of_zero_stays_finite_and_says_nothing(former):
    path, tensors = former
    write_former(path, tensors | {name: torch.zeros(()) for name in GATES})
    _, found = read_motion_file(path)
    gates = [t for name, t in found.items() if name.endswith(".theta")]
    assert len(gates) == 3 and all(math.isfinite(t) and t.exp() < 1e-37 for t in gates)


def test_a_changed_file_of_format_1_is_refused_as_ever(former):
    path, _ = former
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(MotionFileError, match="checksum differs"):
        read_motion_file(path)


def test_the_checksum_of_format_1_is_of_its_own_names(former):
    """A checksum over what was made of the tensors would let a file pass whose own bytes were changed."""
    path, tensors = former
    _, upgraded = read_motion_file(path)
    own = {**DESCRIPTION, "sha256": former_checksum(upgraded, DESCRIPTION)}
    safetensors.torch.save_file(tensors, path, {"stillmotion": json.dumps(own)})
    with pytest.raises(MotionFileError, match="checksum differs"):
        read_motion_file(path)


def test_names_of_format_1_are_no_names_of_format_2(former):
    path, tensors = former
    write_former(path, tensors, {**DESCRIPTION, "format_version": 2})
    with pytest.raises(MotionFileError, match="has a part 'frames'"):
        read_motion_file(path)


def test_a_tensor_under_both_names_is_refused(former):
    path, tensors = former
    name = next(name for name in tensors if ".memory." in name)
    write_former(path, tensors | {name.replace(".memory.", ".recurrence."): torch.zeros(7)})
    with pytest.raises(MotionFileError, match="under its name of format 1 and of format 2"):
        read_motion_file(path)


def test_what_is_written_says_that_it_is_format_2(former, tmp_path):
    from stillmotion.networks.motion_file import write_motion_file

    info, found = read_motion_file(former[0])
    write_motion_file(new := tmp_path / "new.safetensors", found, info)
    tensors, metadata = contents(new)
    own = json.loads(metadata["stillmotion"])
    assert own["format_version"] == 2 and set(own["config"]) == {"temporal", "frame_attention", "recurrence", "tokens"}
    assert tensors.keys() == found.keys() and read_motion_file(new)[0] == info
