"""Clips of a motion file for prompts and seeds: every one once, the same again, and never mixed with others."""

from dataclasses import replace

import motion_files
import numpy as np
import pytest
import tiny_run as tiny
import torch
from PIL import Image
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.motion_file import write_motion_file
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.base.load import load_base
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.find import find_clips
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.generate import Generation, generate, read_prompts


@pytest.fixture(scope="module")
def base(place):
    return load_base(place / "base")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("generate")
    tiny.write_base(place / "base")
    structure = structure_of(tiny.tiny_unet(context=768))
    config = InflationConfig(Temporal())
    info = replace(motion_files.info_of(config), structure=structure, prediction="epsilon", frames=3)
    write_motion_file(place / "motion.safetensors", fresh_inflation(config, structure, 0).state_dict(), info)
    (place / "prompts.txt").write_text("a ball rolls\n\n ein Ball — 球 \n", encoding="utf-8")
    return place


def wanted(place, **changes):
    prompts = read_prompts(place / "prompts.txt")
    how = {"seeds": 2, "frames": 3, "size": (48, 32), "steps": 2, "guidance": 2.0}
    return Generation(place / "motion.safetensors", place / "base", prompts, **{**how, **changes})


def pixels(folder):
    return {p.relative_to(folder).as_posix(): np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))}


def test_each_prompt_and_seed_is_a_clip_with_its_caption_and_a_lost_one_is_made_again_alone(
    place, base, tmp_path, monkeypatch
):
    folder = generate(wanted(place), base, tmp_path / "out")
    clips = find_clips(folder)
    assert [clip.caption for clip in clips] == ["a ball rolls"] * 2 + ["ein Ball — 球"] * 2
    made = pixels(folder)
    assert len(made) == 12 and {picture.shape for picture in made.values()} == {(32, 48, 3)}
    (folder / "prompt 0001 seed 0.txt").unlink()  # as if it had been stopped there
    Image.new("RGB", (48, 32)).save(folder / "prompt 0001 seed 0" / "0001.png")
    untouched = (folder / "prompt 0000 seed 1" / "0000.png").stat().st_mtime_ns
    generate(wanted(place), base, tmp_path / "out")
    again = pixels(folder)
    assert all(np.array_equal(made[name], again[name]) for name in made) and again.keys() == made.keys()
    assert (folder / "prompt 0000 seed 1" / "0000.png").stat().st_mtime_ns == untouched
    monkeypatch.setattr("stillmotion.trainer.run.generate.load_motion", None)
    generate(wanted(place), base, tmp_path / "out")  # all are there: no motion file is loaded


def test_seeds_differ_and_other_settings_do_not_go_into_the_same_folder(place, base, tmp_path):
    folder = generate(wanted(place), base, tmp_path / "out")
    made = pixels(folder)
    assert not np.array_equal(made["prompt 0000 seed 0/0000.png"], made["prompt 0000 seed 1/0000.png"])
    with pytest.raises(ValueError, match=r"holds clips of other settings \(steps\); choose another --output"):
        generate(wanted(place, steps=3), base, tmp_path / "out")
    for damaged in ("{", "[]"):
        (tmp_path / "out/generated.json").write_text(damaged)
        with pytest.raises(ValueError, match="generated.json, which says how .* cannot be read .*; choose another --o"):
            generate(wanted(place), base, tmp_path / "out")


def test_prompts_as_powershell_writes_them_are_read(tmp_path):
    (tmp_path / "p.txt").write_text("a ball\r\nein Ball — 球\r\n", encoding="utf-16")
    assert read_prompts(tmp_path / "p.txt") == ("a ball", "ein Ball — 球")


@pytest.mark.parametrize(
    "content, said", [(None, "is not a file"), (b"\n \n", "holds no prompt"), (b"\xff\xfe\xfa", "is no UTF-8 text")]
)
def test_prompt_files_that_are_none_are_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"--prompts .*p.txt {said}"):
        read_prompts(tmp_path / "p.txt")


def test_evaluate_makes_the_clips_and_measures_them(place, tmp_path, capsys):
    torch.set_num_threads(1)
    words = ["evaluate", "--generate", place / "motion.safetensors", "--base", place / "base"]
    words += ["--prompts", place / "prompts.txt", "--size", "48x32", "--frames", "3", "--steps", "2"]
    words += ["--output", tmp_path / "out", "--cache", tmp_path / "cache"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert (
        "prompt 0000 seed 0" in said and "prompt 0001 seed 0" in said and (tmp_path / "out/evaluation.json").is_file()
    )
    assert main([str(word) for word in words if word not in ("--prompts", place / "prompts.txt")]) == 2
    assert "--generate, --prompts and --base go together" in capsys.readouterr().err


def test_a_set_that_is_not_there_is_told_of_before_anything_is_sampled(place, tmp_path, capsys):
    words = ["evaluate", "--generate", place / "motion.safetensors", "--base", place / "base", "--videos", "nowhere"]
    words += ["--prompts", place / "prompts.txt", "--size", "48x32", "--frames", "3", "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err and not (tmp_path / "out").exists()
