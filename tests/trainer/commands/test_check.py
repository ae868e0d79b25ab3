"""`check` says of every clip what training would see of it, and whether training would start."""

import os
import re
import subprocess
import sys

import clip_sets
import numpy as np
import pytest
import tiny_run as tiny
from PIL import Image
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.find import ClipFormat, find_clips
from stillmotion.trainer.clips.inspect import inspect_clips, table, usable_clips
from stillmotion.trainer.commands.check import size_of_run

FORM = ClipFormat(8, 8, (32, 16))
SMALL = ("--size", "32x16", "--frames", "8")


@pytest.fixture
def folder(tmp_path, write_video):
    folder = tmp_path / "clips"
    folder.mkdir()
    texture = np.random.default_rng(0).integers(0, 255, (48, 200, 3), np.uint8)
    texture = np.asarray(Image.fromarray(texture).reduce(4).resize((200, 48)))
    moving = np.stack([texture[:, 2 * k : 2 * k + 64] for k in range(50)])
    write_video(folder / "moving.mp4", [k / 25 for k in range(50)], moving)
    write_video(folder / "still.mp4", [k / 10 for k in range(20)], np.repeat(moving[:1], 20, 0))
    for name in ("moving", "still"):
        (folder / f"{name}.txt").write_text("a texture")
    return folder


def spoil(folder, write_video):
    (folder / "empty.mp4").write_bytes(b"")
    write_video(folder / "short.mp4", [0, 0.1, 0.2, 0.3], rate=10)
    (folder / "empty.txt").write_text("nothing")
    (folder / "short.txt").write_text("too little")
    (folder / "void.mp4").write_bytes(b"")  # neither frames nor a caption
    write_video(folder / "silent.mp4", [k / 25 for k in range(50)])


def reports_of(folder):
    reports = inspect_clips(find_clips(folder), FORM)
    return {report.source.name: report for report in reports}


def test_a_report_says_what_the_clip_is(folder):
    report = reports_of(folder)["moving.mp4"]
    assert report.problem is None and report.note == ""
    assert (report.count, report.seconds, report.native_fps) == (16, pytest.approx(2.0), pytest.approx(25))
    assert report.native_size == (64, 48)
    assert report.window.shape == (8, 16, 32, 3)
    assert report.source.caption == "a texture"


def test_motion_stands_beside_and_a_still_clip_is_remarked_on(folder):
    reports = reports_of(folder)
    assert reports["moving.mp4"].motion.flow > 10 * reports["still.mp4"].motion.flow
    assert reports["still.mp4"].note == "nothing moves in it"


def test_bad_clips_are_named_with_their_reason(folder, write_video):
    spoil(folder, write_video)
    problems = {name: report.problem for name, report in reports_of(folder).items() if report.problem}
    assert problems.pop("empty.mp4") == "empty, 0 bytes"
    assert problems.pop("short.mp4") == "too short: 0.40 s are 4 frames at 8 fps; 8 frames (1.00 s) are needed"
    assert problems.pop("void.mp4") == "empty, 0 bytes"
    assert problems.pop("silent.mp4").startswith("no caption")
    assert not problems


def test_usable_clips_are_all_or_those_that_skipping_leaves(folder, write_video, caplog):
    assert [source.name for source in usable_clips(list(reports_of(folder).values()), skip_bad=False)] == [
        "moving.mp4",
        "still.mp4",
    ]
    spoil(folder, write_video)
    reports = list(reports_of(folder).values())
    with pytest.raises(
        ValueError, match="4 of 6 clips cannot be used.*--skip-bad.*empty.mp4: empty.*short.mp4: too short"
    ):
        usable_clips(reports, skip_bad=False)
    assert len(usable_clips(reports, skip_bad=True)) == 2
    assert "4 of 6 clips are left out: empty.mp4" in caplog.text


def test_the_table_has_a_line_for_each_clip(folder, write_video):
    spoil(folder, write_video)
    head, *lines = table(list(reports_of(folder).values())).splitlines()
    names = ["empty.mp4", "moving.mp4", "short.mp4", "silent.mp4", "still.mp4", "void.mp4"]
    assert [line.split()[0] for line in lines] == names
    assert lines[1].split()[1:5] == ["2.00", "25", "64x48", "16"]
    assert all(line[head.index("status") :].strip() for line in lines)


def test_the_size_of_the_run_counts_what_can_be_used(folder, write_video):
    spoil(folder, write_video)
    size = size_of_run(list(reports_of(folder).values()), FORM)
    clips, shown = size.splitlines()
    assert clips == "2 clips, 32 frames at 8 fps: 18 windows of 8 frames of 32x16, in latents 8 x 4 x 2 x 4"
    assert shown == "fewshot's 2000 steps of one clip each show a clip 1000 times"


def test_the_command_writes_a_sheet_and_exits_0(folder, tmp_path, capsys):
    assert main(["check", "--videos", str(folder), "--output", str(tmp_path / "out"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "moving.mp4" in said and "windows of 8 frames" in said
    assert Image.open(tmp_path / "out" / "clips.png").height > 2 * 128


@pytest.mark.parametrize("skip, code", [([], 2), (["--skip-bad"], 0)])
def test_a_bad_clip_exits_2_unless_it_may_be_skipped(folder, tmp_path, write_video, capsys, skip, code):
    spoil(folder, write_video)
    assert main(["check", "--videos", str(folder), "--output", str(tmp_path / "out"), *SMALL, *skip]) == code
    assert "short.mp4" in capsys.readouterr().out
    assert (tmp_path / "out" / "clips.png").exists()


def test_no_usable_clip_is_one_line_and_exit_2_even_with_skipping(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("not a video")
    code = main(["check", "--videos", str(tmp_path), "--caption", "x", "--output", str(tmp_path / "o"), "--skip-bad"])
    errors = capsys.readouterr().err.split("error: ")
    assert code == 2
    assert errors[-1].startswith("None of the 1 clips can be used: a.mp4: not a video") and errors[-1].count("\n") == 1


@pytest.mark.parametrize("wrong", [["--fps", "0.9"], ["--frames", "1"], ["--size", "500x320"], ["--crop", "left"]])
def test_options_out_of_range_are_refused(folder, capsys, wrong):
    assert main(["check", "--videos", str(folder), *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_with_a_base_the_factors_of_each_clip_are_printed_and_how_they_vary(folder, tmp_path, capsys, caplog):
    """A texture that is shifted by 6 pixels from frame to frame, and the same one that stands still."""
    caplog.set_level("INFO", "stillmotion")
    tiny.write_base(tmp_path / "base")
    more = ["--base", str(tmp_path / "base"), "--cache", str(tmp_path / "cache")]
    assert main(["check", "--videos", str(folder), "--output", str(tmp_path / "out"), *SMALL, *more]) == 0
    said = capsys.readouterr().out
    moving, still = (
        re.search(rf"{name}.mp4 +motion factor +(\d+)  appearance factor (\S+)", said) for name in ("moving", "still")
    )
    assert int(moving[1]) > 10 * int(still[1]) and float(moving[2]) >= float(still[2]) >= 0
    assert "5th, 50th and 95th percentile" in said and "motion factor hardly differs" not in caplog.text
    only = [str(folder / "still.mp4"), "--caption", "x"]
    assert main(["check", "--videos", *only, "--output", str(tmp_path / "out"), *SMALL, *more]) == 0
    assert "The motion factor hardly differs" in caplog.text and "The appearance factor hardly" in caplog.text


@pytest.mark.parametrize("form", ["table", "tar", "one clip"])
def test_every_form_that_training_takes_is_looked_at(folder, tmp_path, capsys, form):
    if form == "table":
        (folder / "all.csv").write_text("file_name,text\nmoving.mp4,a texture, moving\nstill.mp4,another\n")
        videos = folder / "all.csv"
    elif form == "tar":
        names = ("moving.mp4", "moving.txt", "still.mp4", "still.txt")
        videos = clip_sets.write_tar(tmp_path / "a.tar", {name: (folder / name).read_bytes() for name in names})
    else:
        videos = folder / "moving.mp4"
    words = ["check", "--videos", str(videos), "--output", str(tmp_path / "out"), "--first", "1", *SMALL]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "moving.mp4" in said and "a texture" in said and "still.mp4" not in said and "windows of 8 frames" in said
    assert "These are the first 1 of the set" in said


def test_words_that_clip_does_not_read_are_named(folder, tmp_path, capsys):
    (folder / "moving.txt").write_text("cat " * 75 + "and a dog in the evening")
    assert main(["check", "--videos", str(folder), "--output", str(tmp_path / "out"), *SMALL]) == 0
    assert "81 tokens, of which CLIP reads 75; unread: 'and a dog in the evening'" in capsys.readouterr().out


def test_a_console_that_lacks_letters_shows_something_in_their_place(folder, tmp_path):
    (folder / "moving.txt").write_text("a red square 🟥 一个", encoding="utf-8")
    words = ["check", "--videos", folder, "--output", tmp_path / "out", *SMALL]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-m", "stillmotion.trainer", *words], capture_output=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert b"a red square \\U0001f7e5" in ran.stdout and (tmp_path / "out/clips.png").exists()


def test_the_colour_and_the_turn_of_a_clip_stand_in_the_table(folder, tmp_path, write_video):
    write_video(folder / "plain.mp4", [k / 8 for k in range(16)], codec="mpeg4", aspect=2)
    reports = inspect_clips(find_clips(folder / "plain.mp4", "x"), FORM)
    assert "ok (pixels 2 as wide as high, no colour marks, read as BT601" in table(reports)
