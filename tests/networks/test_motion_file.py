"""Motion files come back exact, and each kind of damage is refused in its own sentence before a tensor is used."""

import json
import os
import pickle
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from stillmotion.networks.config import Frames, InflationConfig, Memory, Queries, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import (
    LARGEST_HEADER,
    MotionFileError,
    MotionInfo,
    read_motion_file,
    read_motion_info,
    write_motion_file,
)
from stillmotion.networks.sites import Level, Structure
from torch import nn

SLIM = Structure((Level(32, (1,), (1, 1)),), middle=0, context=768)
EVERYTHING = InflationConfig(Temporal(heads=4), Frames(heads=4), Memory(), Queries(rank=3))
CONFIGS = {
    "nothing": InflationConfig(),
    "temporal": InflationConfig(temporal=Temporal(4, False, "clip", True)),
    "frames": InflationConfig(frames=Frames(2)),
    "memory": InflationConfig(memory=Memory("paper_rnn")),
    "lora": InflationConfig(queries=Queries(5)),
    "full queries": InflationConfig(queries=Queries(None)),
    "everything": EVERYTHING,
}

GAMMA = "input_blocks.1.1.transformer_blocks.0.attn1.memory.mix.gamma"
WEIGHT = "input_blocks.1.1.attention.proj_out.weight"


def trained(config, dtype=torch.float32):
    made = Inflation(config, SLIM)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.to(dtype).state_dict()


def info_of(config, **more):
    return MotionInfo(
        config,
        SLIM,
        schedule="linear",
        prediction="v_prediction",
        frames=24,
        fps=12.5,
        width=456,
        height=256,
        captions=("a ball rolls", 'ein „Ball" — 球'),
        options={"steps": 300, "lr": 1e-4, "seed": None, "nested": {"sizes": [1, 2]}},
        versions={"torch": "2.11.0"},
        **more,
    )


@pytest.fixture
def path(tmp_path):
    """A good file with every part."""
    path = tmp_path / "motion.safetensors"
    write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    return path


def contents(path):
    """Its tensors and metadata, read without the code under test and not mapped, so that it can be overwritten."""
    with safe_open(path, "pt") as file:
        return safetensors.torch.load(path.read_bytes()), file.metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_comes_back_exact(tmp_path, name, dtype):
    tensors, info, path = trained(CONFIGS[name], dtype), info_of(CONFIGS[name]), tmp_path / "motion.safetensors"
    write_motion_file(path, tensors, info)
    got_info, got = read_motion_file(path, fits=SLIM)
    assert got_info == info == read_motion_info(path)
    assert got.keys() == tensors.keys()
    assert all(got[key].dtype == dtype and torch.equal(got[key], tensors[key]) for key in tensors)


def test_a_number_without_dimensions_comes_back_exact(path):
    _, tensors = read_motion_file(path)
    assert tensors[GAMMA].shape == ()
    assert torch.equal(tensors[GAMMA], contents(path)[0][GAMMA])


def test_what_was_written_loads_into_a_new_inflation(path):
    info, tensors = read_motion_file(path)
    made = Inflation(info.config, info.structure)
    made.load_state_dict(tensors, strict=True)
    assert all(torch.equal(value, tensors[key]) for key, value in made.state_dict().items())


def test_any_safetensors_reader_finds_the_tensors_and_what_they_are(path):
    tensors, metadata = contents(path)
    assert tensors.keys() == Inflation(EVERYTHING, SLIM).state_dict().keys()
    assert metadata["modelspec.architecture"] == "sd15/stillmotion"
    assert metadata["modelspec.title"] == "a ball rolls"
    assert metadata["modelspec.resolution"] == "456x256"
    own = json.loads(metadata["stillmotion"])
    assert (own["format_version"], own["base_family"], own["schedule"]) == (1, "sd15", "linear")


def test_strided_and_trained_tensors_are_written_by_value(tmp_path):
    tensors, path = trained(EVERYTHING), tmp_path / "motion.safetensors"
    given = {**tensors, WEIGHT: nn.Parameter(tensors[WEIGHT].T.clone()).T}
    write_motion_file(path, given, info_of(EVERYTHING))
    assert torch.equal(read_motion_file(path)[1][WEIGHT], tensors[WEIGHT])


def test_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "motion.safetensors"
    write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    assert read_motion_info(path).config == EVERYTHING


# Damage: each function makes a good file bad in one way.


def rewrite(path, tensors=None, **own):
    """Writes again with these tensors and entries of its description; None removes an entry."""
    old_tensors, metadata = contents(path)
    description = json.loads(metadata["stillmotion"]) | own
    description = {key: value for key, value in description.items() if value is not None}
    metadata["stillmotion"] = json.dumps(description)
    safetensors.torch.save_file(old_tensors if tensors is None else tensors, path, metadata)


def rewrite_config(path, part, options):
    own = json.loads(contents(path)[1]["stillmotion"])
    rewrite(path, config={**own["config"], part: options})


def rewrite_metadata(path, metadata):
    safetensors.torch.save_file(contents(path)[0], path, metadata)


def header_length(path):
    return struct.unpack("<Q", path.read_bytes()[:8])[0]


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[: 8 + header_length(path) // 2])


def cut_in_the_data(path):
    path.write_bytes(path.read_bytes()[:-5])


def bytes_appended(path):
    path.write_bytes(path.read_bytes() + b"12345")


def empty(path):
    path.write_bytes(b"")


def seven_bytes(path):
    path.write_bytes(b"\x10\0\0\0\0\0\0")


def a_picture(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))


def a_web_page(path):
    path.write_bytes(b"<!DOCTYPE html><html><body>404</body></html>" * 9)


def header_is_no_json(path):
    data = bytearray(path.read_bytes())
    data[8:40] = b"?" * 32
    path.write_bytes(data)


def huge_header(path):
    path.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + b"{" + b" " * (LARGEST_HEADER + 100))


def zip_pickle(path):
    torch.save(contents(path)[0], path)


def legacy_pickle(path):
    torch.save(contents(path)[0], path, _use_new_zipfile_serialization=False)


def newest_pickle(path):
    path.write_bytes(pickle.dumps({"a": [1, 2, 3]}, protocol=5))


def no_description(path):
    rewrite_metadata(path, {"format": "pt"})


def no_metadata(path):
    rewrite_metadata(path, None)


def unreadable_json(path):
    rewrite_metadata(path, {"stillmotion": '{"format_version": 1, '})


def json_of_something_else(path):
    rewrite_metadata(path, {"stillmotion": "[1, 2]"})


def no_version(path):
    rewrite(path, format_version=None)


def newer_version(path):
    rewrite(path, format_version=2)


def unknown_part(path):
    rewrite_config(path, "warp", {})


def unknown_option(path):
    rewrite_config(path, "temporal", {"heads": 4, "depth": 3})


def unknown_mode(path):
    rewrite_config(path, "memory", {"mode": "lstm"})


def no_config(path):
    rewrite(path, config=None)


def no_schedule(path):
    rewrite(path, schedule=None)


def missing_key(path):
    rewrite(path, {name: t for name, t in contents(path)[0].items() if name != WEIGHT})


def missing_part(path):
    """Its description promises a part of which it holds nothing."""
    rewrite(path, {name: t for name, t in contents(path)[0].items() if ".memory." not in name})


def extra_key(path):
    rewrite(path, {**contents(path)[0], "input_blocks.99.bias": torch.zeros(3)})


def extra_part(path):
    own = json.loads(contents(path)[1]["stillmotion"])
    rewrite(path, config={name: options for name, options in own["config"].items() if name != "frames"})


def wrong_shape(path):
    rewrite(path, {**contents(path)[0], WEIGHT: torch.zeros(32, 31)})


def other_rank(path):
    rewrite_config(path, "queries", {"rank": 5})


def with_nan(path):
    tensors = contents(path)[0]
    tensors[WEIGHT][3, 5] = float("nan")
    rewrite(path, tensors)


def with_infinity(path):
    rewrite(path, {**contents(path)[0], GAMMA: torch.tensor(-float("inf"))})


def changed_byte(path):
    """The last mantissa bit of the last number: still finite, still the same shape."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def changed_tensor(path):
    rewrite(path, {**contents(path)[0], GAMMA: torch.tensor(0.25)})


def no_checksum(path):
    rewrite(path, sha256=None)


IN_THE_HEADER = [
    (cut_in_the_header, "is damaged or cut short"),
    (cut_in_the_data, "is damaged or cut short"),
    (bytes_appended, "is damaged or cut short"),
    (header_is_no_json, "is damaged or cut short"),
    (empty, "is not a safetensors file"),
    (seven_bytes, "is not a safetensors file"),
    (a_picture, "is not a safetensors file"),
    (a_web_page, "is not a safetensors file"),
    (huge_header, f"its header would be {LARGEST_HEADER + 1} bytes"),
    (zip_pickle, "is a pickled file, which can run code"),
    (legacy_pickle, "is a pickled file, which can run code"),
    (newest_pickle, "is a pickled file, which can run code"),
    (no_description, "but not a motion file"),
    (no_metadata, "but not a motion file"),
    (unreadable_json, "has a description that cannot be read"),
    (json_of_something_else, "has a description that cannot be read"),
    (no_version, "has a description that cannot be read"),
    (newer_version, "has format version 2; this Stillmotion reads version 1"),
    (unknown_part, "has a part 'warp'; this version knows temporal, frames, memory, queries"),
    (unknown_option, "part 'temporal' has an option 'depth'; this version knows heads, layers, levels, middle"),
    (unknown_mode, "part 'memory' has mode 'lstm'; allowed are gated_scan, paper_rnn"),
    (no_config, "its description lacks 'config'"),
    (no_schedule, "its description lacks 'schedule'"),
    (missing_key, rf"lacks 1 of its 111 tensors, first {re.escape(WEIGHT)}"),
    (missing_part, r"lacks 18 of its 111 tensors, first input_blocks\.1\.1\.transformer_blocks\.0\.attn1\.memory\."),
    (extra_key, r"holds input_blocks\.99\.bias, which its description does not name"),
    (extra_part, r"holds input_blocks\.1\.1\..*\.frames\..*, which its description does not name"),
    (wrong_shape, rf"holds {re.escape(WEIGHT)} with shape \(32, 31\); it should be \(32, 32\)"),
    (other_rank, r"queries\.down\.weight with shape \(3, 32\); it should be \(5, 32\)"),
]
IN_THE_TENSORS = [
    (with_nan, rf"holds NaN or infinity in {re.escape(WEIGHT)}"),
    (with_infinity, rf"holds NaN or infinity in {re.escape(GAMMA)}"),
    (changed_byte, r"was changed after it was written \(its checksum differs\)"),
    (changed_tensor, r"was changed after it was written \(its checksum differs\)"),
    (no_checksum, r"was changed after it was written \(its checksum differs\)"),
]


def named(cases):
    return pytest.mark.parametrize("damage, message", cases, ids=[damage.__name__ for damage, _ in cases])


def refusal(read, path, **arguments):
    """The message of the refusal: one sentence that starts with the file."""
    with pytest.raises(MotionFileError) as caught:
        read(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert message.endswith(".")
    assert "\n" not in message
    return message


@named(IN_THE_HEADER)
def test_damage_in_the_header_is_refused_before_a_tensor_is_read(path, monkeypatch, damage, message):
    damage(path)
    monkeypatch.setattr(safetensors.torch, "load", lambda *a, **k: pytest.fail("a tensor was read"))
    assert re.search(message, refusal(read_motion_file, path))
    assert re.search(message, refusal(read_motion_info, path))


@named(IN_THE_TENSORS)
def test_damaged_tensors_are_refused(path, damage, message):
    damage(path)
    assert re.search(message, refusal(read_motion_file, path))


def test_each_kind_of_damage_has_its_own_message(path):
    """No message answers to the description of another kind."""
    good, kinds = path.read_bytes(), {message for _, message in IN_THE_HEADER + IN_THE_TENSORS}
    ambiguous = {"is not a safetensors file", f"its header would be {LARGEST_HEADER + 1} bytes"}
    for damage, expected in IN_THE_HEADER + IN_THE_TENSORS:
        path.write_bytes(good)
        damage(path)
        said = refusal(read_motion_file, path)
        assert {kind for kind in kinds if re.search(kind, said)} - {expected} <= ambiguous - {expected}, damage


def test_a_good_file_is_not_refused_by_the_checks_above(path):
    rewrite(path)
    assert read_motion_file(path, fits=SLIM)[0] == info_of(EVERYTHING)


def test_a_pickle_is_refused_unopened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    for new in (True, False):
        torch.save({"weight": Bomb()}, tmp_path / "motion.safetensors", _use_new_zipfile_serialization=new)
        refusal(read_motion_file, tmp_path / "motion.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("read", [read_motion_file, read_motion_info])
def test_no_file_is_said_with_its_name(tmp_path, read):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"There is no motion file {path}.")):
            read(path)


@pytest.mark.parametrize(
    "structure, message",
    [
        (replace(SLIM, context=1024), "was made for sd15 models; this model is sd21"),
        (replace(SLIM, levels=(Level(64, (1,), (1, 1)),)), r"\(32 channels .*\) than this model's \(64 channels"),
        (replace(SLIM, levels=(Level(32, (1, 1), (1, 1, 1)),)), "was made for a U-Net with other layers"),
        (replace(SLIM, middle=1), "was made for a U-Net with other layers"),
        (replace(SLIM, middle=None), "was made for a U-Net with other layers"),
    ],
    ids=["family", "widths", "blocks", "middle", "no middle"],
)
def test_a_file_for_another_model_is_refused_before_a_tensor_is_read(path, monkeypatch, structure, message):
    monkeypatch.setattr(safetensors.torch, "load", lambda *a, **k: pytest.fail("a tensor was read"))
    assert re.search(message, refusal(read_motion_file, path, fits=structure))
    assert re.search(message, refusal(read_motion_info, path, fits=structure))


# A failing write


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, call):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("wrong", ["nan", "missing", "shape"])
def test_what_could_not_be_read_is_never_written(path, wrong):
    tensors, before = trained(EVERYTHING), path.read_bytes()
    if wrong == "missing":
        del tensors[WEIGHT]
    else:
        tensors[WEIGHT] = torch.full((32, 32), float("nan")) if wrong == "nan" else torch.zeros(5, 3)
    with pytest.raises(MotionFileError):
        write_motion_file(path, tensors, info_of(EVERYTHING))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_replaces_the_old_one(path):
    tensors, info = trained(EVERYTHING), replace(info_of(EVERYTHING), frames=7)
    write_motion_file(path, tensors, info)
    got_info, got = read_motion_file(path)
    assert got_info.frames == 7
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert os.listdir(path.parent) == [path.name]
