"""Descriptions that were made to break the reader, and files that change under it."""

import json
import re
import struct
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from stillmotion.networks.config import InflationConfig, Queries, Temporal
from stillmotion.networks.formats.files import read_any_motion_file
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionFileError, MotionInfo, read_motion_file, write_motion_file
from stillmotion.networks.sites import Level, Structure

SLIM = Structure((Level(32, (1,), (1, 1)),), middle=0, context=768)
CONFIG = InflationConfig(queries=Queries(rank=3))
INFO = MotionInfo(CONFIG, SLIM)


def tensors(config=CONFIG):
    return Inflation(config, SLIM).state_dict()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "motion.safetensors"
    write_motion_file(path, tensors(), INFO)
    return path


def rewrite(path, new_tensors=None, **own):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["stillmotion"] = json.dumps(json.loads(metadata["stillmotion"]) | own)
    old = safetensors.torch.load(path.read_bytes())
    safetensors.torch.save_file(old if new_tensors is None else new_tensors, path, metadata)


@pytest.mark.parametrize("low", [0x0280, 0x0480, 0x0580, 0x4B50], ids=["pickle 2", "pickle 4", "pickle 5", "PK"])
def test_a_good_file_is_not_taken_for_a_pickle_by_the_length_of_its_header(tmp_path, low):
    """The first bytes of a safetensors file are the length of its header: one in 2048 looks like a pickle's."""
    path = tmp_path / "motion.safetensors"
    write_motion_file(path, tensors(), replace(INFO, captions=("",)))
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    write_motion_file(path, tensors(), replace(INFO, options={"note": "a" * (0x10000 + low - length)}))
    pad = 0x10000 + low - struct.unpack("<Q", path.read_bytes()[:8])[0]
    note = "a" * (0x10000 + low - length + pad)
    write_motion_file(path, tensors(), replace(INFO, options={"note": note}))
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] == 0x10000 + low
    assert read_motion_file(path)[0].options == {"note": note}


@pytest.mark.parametrize(
    "own",
    [
        {"config": {"temporal": {"heads": 5}}},
        {"config": {"temporal": {"heads": 0}}},
        {"config": {"temporal": {"heads": "4"}}},
        {"config": {"queries": {"rank": -1}}},
        {"config": {"queries": {"rank": 1.5}}},
        {"structure": {"levels": [], "middle": 0, "context": 768}},
        {"structure": {"levels": [{"width": "32", "down": [1], "up": [1, 1]}], "middle": 0, "context": 768}},
        {"structure": {"levels": [{"width": 32, "down": [1], "up": []}] * 2, "middle": 0, "context": 768}},
    ],
    ids=json.dumps,
)
def test_values_that_make_no_inflation_are_refused_with_the_name_of_the_file(path, own):
    rewrite(path, **own)
    with pytest.raises(MotionFileError, match=re.escape(str(path))):
        read_motion_file(path)


def test_a_description_of_a_monstrous_unet_is_refused_without_building_it(path):
    """3,000 transformer blocks take seconds; a header of 1 kB can ask for hours and all memory."""
    level = {"width": 32, "down": [3000], "up": [1, 1]}
    rewrite(path, structure={"levels": [level], "middle": 0, "context": 768})
    start = time.monotonic()
    with pytest.raises(MotionFileError):
        read_motion_file(path)
    assert time.monotonic() - start < 0.2


@pytest.mark.parametrize("own", [{"frames": "16"}, {"fps": None}, {"captions": "one"}, {"options": 3}, {"width": -8}])
def test_values_of_the_wrong_type_are_refused(path, own):
    rewrite(path, **own)
    with pytest.raises(MotionFileError, match=re.escape(str(path))):
        read_motion_file(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float8_e4m3fn])
def test_tensors_of_another_kind_of_number_are_refused(path, dtype):
    other = {name: torch.zeros_like(t).to(dtype) for name, t in tensors().items()}

    rewrite(path, other, sha256="")
    with pytest.raises(MotionFileError, match=re.escape(str(path))):
        read_motion_file(path)


@pytest.mark.parametrize("name", ["norm_scope", "schedule", "prediction"])
def test_a_changed_description_is_noticed(tmp_path, name):
    """The checksum covers what the file says of its tensors too."""
    config, path = InflationConfig(temporal=Temporal(4)), tmp_path / "motion.safetensors"
    write_motion_file(path, tensors(config), MotionInfo(config, SLIM))
    data = path.read_bytes()
    changed = {
        "norm_scope": (rb"\"norm_scope\": \"frame\"", rb"\"norm_scope\": \"clip\" "),
        "schedule": (b"scaled_linear", b"squaredcosine"),
        "prediction": (b"epsilon", b"v_predi"),
    }[name]
    assert changed[0] in data
    path.write_bytes(data.replace(*changed))
    with pytest.raises(MotionFileError):
        read_motion_file(path)


def test_a_refused_write_names_the_file_that_was_to_be_written(path):
    broken = {name: torch.full_like(t, float("nan")) for name, t in tensors().items()}
    with pytest.raises(MotionFileError) as caught:
        write_motion_file(path, broken, INFO)
    assert str(caught.value).startswith(f"{path} ")


def test_tensors_that_were_checked_do_not_change_with_the_file(path):
    """A reader that maps them would change, or end, with a file that is overwritten in place (a sync tool)."""
    write_motion_file(path, {name: torch.randn_like(t) for name, t in tensors().items()}, INFO)
    _, got = read_motion_file(path)
    before = {name: t.clone() for name, t in got.items()}
    with open(path, "r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
    assert all(torch.equal(got[name], before[name]) for name in got)


def test_one_missing_tensor_is_said_to_be_one(path):
    missing = tensors()
    missing.popitem()
    rewrite(path, missing)
    with pytest.raises(MotionFileError) as caught:
        read_motion_file(path)
    assert "0 more" not in str(caught.value)


def test_a_file_can_be_written_by_a_path_in_a_string_as_it_can_be_read(path):
    write_motion_file(str(path), tensors(), INFO)
    assert read_motion_file(str(path))[0] == INFO


@pytest.mark.parametrize("data", [{"temporal": None}, {"temporal": 3}, []])
def test_config_of_the_wrong_shape_is_a_value_error_as_its_docstring_says(data):
    with pytest.raises(ValueError):
        InflationConfig.from_json(data)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_table_of_positions_without_numbers_is_refused_before_one_is_computed(tmp_path, axis):
    """A file of 448 bytes took all memory of the program that opened it."""
    module = "down_blocks.0.motion_modules.0.temporal_transformer."
    shape = [1, 200_000_000, 4]
    shape[axis] = 0
    header = {
        f"{module}norm.weight": {"dtype": "F32", "shape": [32], "data_offsets": [0, 128]},
        f"{module}transformer_blocks.0.attention_blocks.0.pos_encoder.pe": {
            "dtype": "F32", "shape": shape, "data_offsets": [128, 128]},
    }  # fmt: skip
    text, path = json.dumps(header).encode(), tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(128))
    start = time.monotonic()
    with pytest.raises(MotionFileError, match="in which there is no number"):
        read_any_motion_file(path)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    "own",
    [
        {"config": {"queries": {"rank": 2**62}}},
        {"config": {"temporal": {"heads": []}}},
        {"config": {"resampler": {"tokens": 1, "width": 2**62}}},
        {"structure": {"levels": [{"width": 32, "down": [1], "up": [1, 1]}], "middle": [], "context": 768}},
        {"structure": {"levels": [{"width": 32, "down": [1], "up": [1, 1]}], "middle": 0, "context": 10**400}},
        {"frames": 10**9},
        {"positions": 10**6 - 1},
        {"fps": float("nan")},
        {"captions": [3]},
        {"factors": {"motion": [1, 2, 10**400]}},
        {"schedule": "a" * 10**6},
        {"captions": "a" * 10**6},
    ],
    ids=lambda own: json.dumps(own)[:60],
)
def test_numbers_and_texts_without_bounds_are_refused_in_a_short_sentence(path, own):
    rewrite(path, **own)
    with pytest.raises(MotionFileError) as caught:
        read_motion_file(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1200 and str(caught.value).isprintable()


def test_a_description_in_1000_lists_is_refused(path):
    options = []
    for _ in range(900):
        options = [options]
    rewrite(path, options={"a": options})
    with pytest.raises(MotionFileError, match="has a description that cannot be read"):
        read_motion_file(path)
