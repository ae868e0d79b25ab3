"""Each kind of damage to a motion file is refused in its own sentence before a tensor is used."""

import json
import pickle
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from motion_files import EVERYTHING, GAMMA, SLIM, WEIGHT, contents, good_file, info_of
from stillmotion.networks import motion_file
from stillmotion.networks.motion_file import LARGEST_HEADER, MotionFileError, read_motion_file, read_motion_info
from stillmotion.networks.sites import Level


@pytest.fixture
def path(tmp_path):
    return good_file(tmp_path)


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


def a_pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def a_lora(path):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
    safetensors.torch.save_file({f"{layer}.down.weight": torch.zeros(4, 4)}, path)


def an_image_model(path):
    safetensors.torch.save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, path)


def deep_json(path):
    rewrite_metadata(path, {"stillmotion": '{"format_version": 2, "options": ' + "[" * 5000 + "]" * 5000 + "}"})


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
    rewrite_metadata(path, {"stillmotion": '{"format_version": 2, '})


def json_of_something_else(path):
    rewrite_metadata(path, {"stillmotion": "[1, 2]"})


def no_version(path):
    rewrite(path, format_version=None)


def newer_version(path):
    rewrite(path, format_version=3)


def unknown_part(path):
    rewrite_config(path, "warp", {})


def unknown_option(path):
    rewrite_config(path, "temporal", {"heads": 4, "depth": 3})


def unknown_mode(path):
    rewrite_config(path, "recurrence", {"mode": "lstm"})


def no_config(path):
    rewrite(path, config=None)


def no_schedule(path):
    rewrite(path, schedule=None)


def factors_that_are_none(path):
    rewrite(path, factors={"motion": "abc"})


def missing_key(path):
    rewrite(path, {name: t for name, t in contents(path)[0].items() if name != WEIGHT})


def missing_part(path):
    """Its description promises a part of which it holds nothing."""
    rewrite(path, {name: t for name, t in contents(path)[0].items() if ".recurrence." not in name})


def extra_key(path):
    rewrite(path, {**contents(path)[0], "input_blocks.99.bias": torch.zeros(3)})


def extra_part(path):
    own = json.loads(contents(path)[1]["stillmotion"])
    rewrite(path, config={name: options for name, options in own["config"].items() if name != "frame_attention"})


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
    (empty, "is not a safetensors file but empty"),
    (seven_bytes, "is not a safetensors file: it has 7 bytes"),
    (a_picture, "is not a safetensors file but a PNG picture"),
    (a_web_page, "is not a safetensors file but a web page: download the file itself"),
    (a_pointer, "is not a safetensors file but a pointer of Git LFS: `git lfs pull`"),
    (a_lora, "but not a motion file: it is a LoRA of an image model: Load LoRA takes it"),
    (an_image_model, "but not a motion file: it is an image model's checkpoint: Load Checkpoint"),
    (huge_header, f"its header would be {LARGEST_HEADER + 1} bytes"),
    (zip_pickle, "is a pickled file, which can run code"),
    (legacy_pickle, "is a pickled file, which can run code"),
    (newest_pickle, "is a pickled file, which can run code"),
    (no_description, "but not a motion file: it does not say how it was made"),
    (no_metadata, "but not a motion file: it does not say how it was made"),
    (deep_json, "has a description that cannot be read"),
    (unreadable_json, "has a description that cannot be read"),
    (json_of_something_else, "has a description that cannot be read"),
    (no_version, "has a description that cannot be read"),
    (newer_version, "has format version 3; this Stillmotion reads version 2"),
    (unknown_part, "has a part 'warp'; this version knows temporal, frame_attention, recurrence, queries"),
    (unknown_option, "part 'temporal' has an option 'depth'; this version knows heads, layers, levels, middle"),
    (unknown_mode, "part 'recurrence' has mode 'lstm'; allowed are gated_scan, paper_rnn"),
    (no_config, "its description lacks 'config'"),
    (no_schedule, "its description lacks 'schedule'"),
    (factors_that_are_none, "its factors of motion are 'abc'; they must be three numbers"),
    (missing_key, rf"lacks 1 of its 111 tensors, first {re.escape(WEIGHT)}"),
    (
        missing_part,
        r"lacks 18 of its 111 tensors, first input_blocks\.1\.1\.transformer_blocks\.0\.attn1\.recurrence\.",
    ),
    (extra_key, r"holds input_blocks\.99\.bias, which its description does not name"),
    (extra_part, r"holds input_blocks\.1\.1\..*\.frame_attention\..*, which its description does not name"),
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
    monkeypatch.setattr(motion_file, "tensors_in", lambda *a: pytest.fail("a tensor was read"))
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
    monkeypatch.setattr(motion_file, "tensors_in", lambda *a: pytest.fail("a tensor was read"))
    assert re.search(message, refusal(read_motion_file, path, fits=structure))
    assert re.search(message, refusal(read_motion_info, path, fits=structure))
