"""Files of tensors as people have them, damaged, disguised or made to break a reader."""

import io
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file
from stillmotion.trainer.base import tensors as module
from stillmotion.trainer.base.tensors import is_pickled_file, read_tensors

GOOD = {"a.weight": torch.arange(4096.0), "b": torch.tensor(2.0)}


def refusal(path):
    with pytest.raises(ValueError) as caught:
        read_tensors(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 500
    return said


@pytest.mark.parametrize("name", ["a.safetensors", "a.SAFETENSORS", "a.ckpt", "a"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_file_is_what_its_bytes_are(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "safetensors":
        save_file(GOOD, path)
    else:
        torch.save(GOOD, path, _use_new_zipfile_serialization=kind == "zip")
    found = read_tensors(path)
    assert found.keys() == GOOD.keys() and all(torch.equal(found[n], t) for n, t in GOOD.items())
    assert is_pickled_file(path) == (kind != "safetensors")


def test_one_flipped_bit_in_a_tensor_of_an_archive_is_noticed(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(GOOD, path)
    data = bytearray(path.read_bytes())
    entry = next(e for e in zipfile.ZipFile(path).infolist() if e.filename.endswith("data/0"))
    names, extra = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
    data[entry.header_offset + 30 + names + extra + 9] ^= 0x40
    path.write_bytes(data)
    assert "it is damaged: the checksum of a/data/0 differs" in refusal(path)


def test_a_short_file_of_endless_numbers_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    for new in (True, False):
        torch.save({"a": torch.zeros(1).expand(10**10)}, path, _use_new_zipfile_serialization=new)
        assert path.stat().st_size < 2000 and "it claims 40000000000 bytes for a" in refusal(path)
    shared = torch.zeros(1000)
    torch.save({str(i): shared.view(1000) for i in range(100)}, path)
    assert "bytes for its tensors" in refusal(path)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    path, plain = tmp_path / "a.ckpt", io.BytesIO()
    torch.save({"a": torch.zeros(10**6)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert path.stat().st_size < 10**5 and "compressed" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "it is a zip archive without a checkpoint in it" in refusal(path)


@pytest.mark.parametrize(
    "value",
    [
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.zeros(0, 10**9),
    ],
    ids=["sparse", "meta", "quantised", "empty"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, value):
    torch.save({"a": value}, tmp_path / "a.ckpt")
    assert "it holds a " in refusal(tmp_path / "a.ckpt") or "it cannot be read" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("loaded", [[1], torch.ones(2), {"state_dict": [1]}, {"state_dict": None}])
def test_what_holds_no_names_is_refused(tmp_path, loaded):
    torch.save(loaded, tmp_path / "a.ckpt")
    assert "it holds no tensors by their names" in refusal(tmp_path / "a.ckpt")


def test_names_that_are_no_text_are_left_out(tmp_path):
    torch.save({3: torch.ones(2), "a": torch.ones(1), None: torch.ones(3)}, tmp_path / "a.ckpt")
    assert read_tensors(tmp_path / "a.ckpt").keys() == {"a"}


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"nothing known", "it begins with"),
        (save(GOOD)[:-7], "for it is damaged"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_is(tmp_path, data, words):
    (tmp_path / "a.ckpt").write_bytes(data)
    assert words in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "version, refused", [("2.5.1", True), ("2.9.1+cu130", True), ("2.10.0", False), ("3.0.0", False)]
)
def test_pickles_are_left_alone_below_the_torch_that_reads_them_safely(tmp_path, monkeypatch, version, refused):
    torch.save(GOOD, tmp_path / "a.ckpt")
    monkeypatch.setattr(module.torch, "__version__", version)
    if refused:
        assert "install torch 2.10 or newer, or give a .safetensors file" in refusal(tmp_path / "a.ckpt")
    else:
        assert read_tensors(tmp_path / "a.ckpt").keys() == GOOD.keys()
    save_file(GOOD, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors").keys() == GOOD.keys()
