"""Safetensors files written and read a tensor at a time are those of the library itself."""

import io
import json
import struct

import pytest
import safetensors.torch
import torch
from stillmotion.networks.tensor_file import KINDS, is_finite, read_header, tensors_in, write_tensors

METADATA = {"about": 'ein „Ball" — 球'}
A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.fixture
def tensors():
    made = {f"{name}.{i}": (100 * torch.rand(3, i)).to(dtype) for name, dtype in KINDS.items() for i in (1, 2, 0)}
    return made | {"a scalar": torch.tensor(3.5), "Z": torch.randn(4, 5, dtype=torch.float16)}


def full(tensors):
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def written(path, tensors):
    with open(path, "wb") as file:
        write_tensors(file, tensors, METADATA)
    return path


def read(path):
    with open(path, "rb") as file:
        return dict(tensors_in(file, read_header(file)))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("metadata", [METADATA, {}])
def test_the_bytes_are_the_librarys(tensors, metadata):
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    assert file.getvalue() == safetensors.torch.save(tensors, metadata or None)


def test_tensors_of_any_strides_come_back_in_the_order_of_their_names(tensors, tmp_path):
    given = {name: tensor.mT if tensor.ndim == 2 else tensor for name, tensor in full(tensors).items()}
    written(tmp_path / "file", given)
    found = read(tmp_path / "file")
    assert list(found) == sorted(given)
    for name, tensor in found.items():
        assert tensor.dtype == given[name].dtype and tensor.shape == given[name].shape
        assert bits(tensor) == bits(given[name])


def test_a_file_that_ends_too_soon_is_no_tensor_of_what_was_in_memory(tensors, tmp_path):
    path = written(tmp_path / "file", full(tensors) | {"Z": torch.zeros(10**5)})  # more than is read ahead
    with open(path, "rb") as file:
        header = read_header(file)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(OSError, match="file was cut short while it was read; copy it again"):
            dict(tensors_in(file, header))


def test_equal_content_is_equal_bytes_in_whatever_order_it_is_given(tensors):
    files = [io.BytesIO(), io.BytesIO()]
    write_tensors(files[0], tensors, {"b": "2", "a": "1"})
    write_tensors(files[1], dict(reversed(tensors.items())), {"a": "1", "b": "2"})
    assert files[0].getvalue() == files[1].getvalue()


@pytest.mark.parametrize(
    "header, message",
    [
        ({"a": {**A, "shape": [0, 10**9], "data_offsets": [0, 0]}}, "in which there is no number"),
        ({"a": {**A, "shape": [2**40, 2**40]}}, "it has 8 bytes for a"),
        ({"a": {**A, "shape": [-2]}}, "in which there is no number"),
        ({"a": {**A, "shape": [2.0]}}, "is no description of a tensor"),
        ({"a": {**A, "shape": [True, 2]}}, "is no description of a tensor"),
        ({"a": {**A, "shape": [1] * 9 + [2]}}, "is no description of a tensor"),
        ({"a": {**A, "shape": "2"}}, "is no description of a tensor"),
        ({"a": {**A, "dtype": ["F32"]}}, "is no description of a tensor"),
        ({"a": {**A, "more": 1}}, "is no description of a tensor"),
        ({"a": [1, 2]}, "is no description of a tensor"),
        ({"a": {**A, "data_offsets": [8, 0]}}, "it has -8 bytes for a"),
        ({"a": {**A, "data_offsets": [0, 8, 8]}}, "is no description of a tensor"),
        ({"a": {**A, "data_offsets": [4, 12]}}, "at another place"),
        ({"a": {**A, "data_offsets": [-8, 0]}}, "at another place"),
        ({"a": A, "b": A}, "at another place"),
        ({"a": {**A, "data_offsets": [0, 8]}, "b": {**A, "data_offsets": [8, 16]}}, "its tensors end after"),
        ({"a": {**A, "dtype": "F4", "data_offsets": [0, 2**60]}}, "its tensors end after"),
        ({"a": A, "__metadata__": {"x": 1}}, "its metadata are no texts"),
        ({"a": A, "__metadata__": [1]}, "its metadata are no texts"),
    ],
)
def test_a_header_is_held_against_the_file_before_anything_is_made(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with open(tmp_path / "file", "rb") as file, pytest.raises(ValueError, match=message):
        read_header(file)


def test_json_that_is_too_deep_is_refused(tmp_path):
    for text in (b'{"a":' + b"[" * 100_000, b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"):
        (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text)
        with open(tmp_path / "file", "rb") as file, pytest.raises(ValueError, match="too deep|more than 64 deep"):
            read_header(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_bad_number_anywhere_is_found_as_isfinite_finds_it(dtype):
    largest = torch.finfo(dtype).max
    for size in (1, 7, 64, 1001):
        good = (torch.rand(size) - 0.5).to(dtype)
        good[0], good[-1] = largest, -largest
        assert is_finite(good) and torch.isfinite(good).all()
        for bad in (float("nan"), float("inf"), -float("inf")):
            for place in {0, size // 2, size - 1}:
                broken = good.clone()
                broken[place] = bad
                assert not is_finite(broken)
    # NaN of every payload and sign
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for half in (torch.float16, torch.bfloat16):
        numbers = bits.view(half)
        assert [is_finite(n) for n in numbers[::37]] == torch.isfinite(numbers[::37]).tolist()
