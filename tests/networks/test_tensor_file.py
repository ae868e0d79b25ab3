"""Safetensors files written and read a tensor at a time are those of the library itself."""

import io

import pytest
import safetensors.torch
import torch
from stillmotion.networks.tensor_file import KINDS, tensors_in, write_tensors

METADATA = {"about": 'ein „Ball" — 球'}


@pytest.fixture
def tensors():
    made = {f"{name}.{i}": (100 * torch.rand(3, i)).to(dtype) for name, dtype in KINDS.items() for i in (1, 2, 0)}
    return made | {"a scalar": torch.tensor(3.5), "Z": torch.randn(4, 5, dtype=torch.float16)}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("metadata", [METADATA, {}])
def test_the_bytes_are_the_librarys(tensors, metadata):
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    assert file.getvalue() == safetensors.torch.save(tensors, metadata or None)


def test_tensors_of_any_strides_come_back_in_the_order_of_their_names(tensors, tmp_path):
    given = {name: tensor.mT if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    with open(tmp_path / "file", "wb") as file:
        write_tensors(file, given, METADATA)
    found = dict(tensors_in(tmp_path / "file"))
    assert list(found) == sorted(given)
    for name, tensor in found.items():
        assert tensor.dtype == given[name].dtype and tensor.shape == given[name].shape
        assert bits(tensor) == bits(given[name])


def test_a_file_that_ends_too_soon_is_no_tensor_of_what_was_in_memory(tensors, tmp_path):
    file = io.BytesIO()
    write_tensors(file, tensors, {})
    (tmp_path / "file").write_bytes(file.getvalue()[:-1])
    with pytest.raises(OSError, match="file was cut short while it was read; copy it again"):
        dict(tensors_in(tmp_path / "file"))
