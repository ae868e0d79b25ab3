"""Motion files come back exact, and a write that fails leaves the old file alone."""

import json
import os
from dataclasses import replace

import pytest
import torch
from motion_files import EVERYTHING, GAMMA, SLIM, WEIGHT, contents, good_file, info_of, trained
from stillmotion.networks.config import CrossFrames, InflationConfig, Queries, Recurrence, Temporal
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import (
    MotionFileError,
    read_motion_file,
    read_motion_info,
    write_motion_file,
)
from torch import nn

CONFIGS = {
    "nothing": InflationConfig(),
    "temporal": InflationConfig(temporal=Temporal(4, False, "clip", True)),
    "frame_attention": InflationConfig(frame_attention=CrossFrames(2)),
    "recurrence": InflationConfig(recurrence=Recurrence("paper_rnn")),
    "lora": InflationConfig(queries=Queries(5)),
    "full queries": InflationConfig(queries=Queries(None)),
    "everything": EVERYTHING,
}


@pytest.fixture
def path(tmp_path):
    return good_file(tmp_path)


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
    assert (own["format_version"], own["base_family"], own["schedule"]) == (2, "sd15", "linear")


def test_strided_and_trained_tensors_are_written_by_value(tmp_path):
    tensors, path = trained(EVERYTHING), tmp_path / "motion.safetensors"
    given = {**tensors, WEIGHT: nn.Parameter(tensors[WEIGHT].T.clone()).T}
    write_motion_file(path, given, info_of(EVERYTHING))
    assert torch.equal(read_motion_file(path)[1][WEIGHT], tensors[WEIGHT])


def test_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "motion.safetensors"
    write_motion_file(path, trained(EVERYTHING), info_of(EVERYTHING))
    assert read_motion_info(path).config == EVERYTHING


# A failing write


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, call):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="The disk is full"):
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
