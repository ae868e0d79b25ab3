"""What is a clip of a set and what are its words, whatever else lies there: the same for every form and command."""

import json
import logging
import os
import re
import socket

import clip_sets
import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.find import find_clips
from stillmotion.trainer.clips.shards import shards_of


def put(folder, **files):
    """Write files; __ in a name stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def known(path, caption=None):
    """Captions or problems by name; a list and a stream say the same."""
    found = {source.name: source.problem or source.caption for source in find_clips(path, caption)}
    assert found == {s.name: s.problem or s.caption for shard in shards_of(path, caption) for s in shard}
    return found


def csv(text):
    return "file_name,text\n" + text


@pytest.mark.parametrize(
    "table, caption",
    [
        (csv("a.mp4,a red square, moving right, blue\n"), "a red square, moving right, blue"),
        (csv('a.mp4,"a red square, moving", right\n'), "a red square, moving, right"),
        (" File_Name , caption\na.mp4,a cat,dog\n", "a cat,dog"),
        ("file_name,caption,other\na.mp4,a cat,x,y\n", "has 4 fields, and the head 3: put a caption with commas"),
        (csv("a.mp4\n"), "needs file_name and text"),
        (csv("a.mp4,\n"), "its caption is empty"),
    ],
)
def test_a_caption_with_commas_is_whole_or_refused(tmp_path, table, caption):
    folder = put(tmp_path, a__mp4="x", metadata__csv=table)
    assert caption in list(known(folder).values())[0]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_where_a_line_ends(tmp_path, letter):
    row = json.dumps({"file_name": "a.mp4", "text": f"a red{letter}square"}, ensure_ascii=False)
    assert known(put(tmp_path / "a", a__mp4="x", metadata__jsonl=row + "\r\n\n" + row)) == {"a.mp4": "a red square"}
    assert known(put(tmp_path / "b", a__mp4="x", m__csv=csv(f"a.mp4,a red{letter}square\r\n"))) == {
        "a.mp4": "a red square"
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_of_windows_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    texts = {"a__txt": "猫", "metadata__jsonl": '{"file_name": "a.mp4", "text": "猫"}\n', "m__csv": csv("a.mp4,猫\n")}
    for number, (name, text) in enumerate(texts.items()):
        folder = put(tmp_path / str(number), a__mp4="x", **{name: (mark + text).encode(encoding)})
        assert known(folder) == {"a.mp4": "猫"}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("m__csv", csv('a.mp4,"' + "word " * 40_000 + '"\n'), "m.csv, line 2 cannot be read: field larger"),
        ("m__csv", csv("a.mp4,x\n" + "y" * 2_000_000), "m.csv, line 3 has more than 1048576 letters"),
        ("metadata__jsonl", "[" * 100_000, "metadata.jsonl, line 1: is not JSON that can be read: .*too deeply"),
        ("metadata__jsonl", '{"file_name": "a.mp4", "text": "\\ud83d"}', "metadata.jsonl, line 1: is no text"),
        ("metadata__jsonl", '{"file_name": "a\\ud83d.mp4", "text": "x"}', "metadata.jsonl, line 1: is no text"),
        ("metadata__jsonl", "9" * 5000, "metadata.jsonl, line 1: is not JSON: it holds a number of 5000 digits"),
    ],
)
def test_hostile_words_are_one_sentence_with_file_and_line(tmp_path, capsys, name, content, message):
    folder = put(tmp_path / "set", a__mp4="x", **{name: content})
    assert main(["check", "--videos", str(folder), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.split("error: ")[-1]
    assert re.search(message, error) and len(error) < 600


@pytest.mark.parametrize("name", ["x" * 300 + "/b.mp4", "\u00e4" * 100 + ".mp4"], ids=["long", "long when decomposed"])
def test_a_name_that_no_disk_can_hold_is_one_bad_row(tmp_path, name, write_video):
    write_video(tmp_path / "a.mp4", [k / 8 for k in range(24)])
    table = put(tmp_path, metadata__jsonl="".join(f'{{"file_name": "{n}", "text": "x"}}\n' for n in ("a.mp4", name)))
    words = ["check", "--videos", str(table), "--output", str(tmp_path / "out"), "--skip-bad", "--frames", "4"]
    assert main(words) == 0


def test_what_a_terminal_would_obey_is_escaped_in_the_table(tmp_path, capsys):
    put(tmp_path, **{"a\x1b[31mX__mp4": "x", "a\x1b[31mX__txt": b"\xff"})
    assert main(["check", "--videos", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "\x1b[31mX" not in said.out + said.err and "\\x1b[31mX" in said.out


def test_names_in_a_table_start_at_the_tables_folder(tmp_path):
    put(tmp_path / "part1", b__mp4="x", metadata__csv=csv("b.mp4,y\ngone.mp4\n"))
    put(tmp_path, notes__csv="a,b\n1,2\n")
    found = known(tmp_path)
    assert found.pop("part1/b.mp4") == "y"
    assert list(found) == ["part1/metadata.csv, line 3"]


def test_a_csv_without_file_names_is_no_table(tmp_path):
    assert known(put(tmp_path, a__mp4="x", a__txt="a cat", urls__csv="url,views\nhttp://x,3\n")) == {"a.mp4": "a cat"}


STRANGERS = {
    **{"desktop__ini": "[x]", "LICENSE": "x", "Makefile": "x", "a__npz": b"PK", "a__srt": "1\n", "set__yaml": "x"},
    **{"b__mp4__part": "x", "notes__txt": "x", "poster__jpg": b"\xff\xd8", "song__mp3": b"ID3", "x__zip": b"PK\3\4"},
    **{"strange__xyz": bytes(999), "b__json": "{}", "a__html": "<html>", "m__jsonl": "{}", "Thumbs__db": "x"},
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_clip_is_noted_and_stops_nothing(tmp_path, name, caplog):
    folder = put(tmp_path, a__mp4="x", a__txt="a cat", **{name: STRANGERS[name]})
    with caplog.at_level(logging.INFO, "stillmotion"):
        assert known(folder) == {"a.mp4": "a cat"}
    assert f"1 files of {folder} are no clips, nor captions of any, and are left aside: {name.replace('__', '.')}" in (
        caplog.text
    )


def test_many_strangers_are_one_note_with_their_count(tmp_path, caplog):
    put(tmp_path, a__mp4="x", a__txt="x", **{f"{n}__ini": "x" for n in range(40)})
    with caplog.at_level(logging.INFO, "stillmotion"):
        find_clips(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "left aside" in record.getMessage()]
    assert line.startswith("40 files") and line.endswith("4.ini and 35 more")


def test_a_video_without_a_clips_suffix_is_found_by_its_content(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", [k / 8 for k in range(24)]).rename(tmp_path / "a video")
    put(tmp_path, a_video__txt="x")
    (tmp_path / "a_video.txt").rename(tmp_path / "a video.txt")
    assert known(tmp_path) == {"a video": "x"}


def test_empty_folders_and_what_systems_leave_are_passed_over(tmp_path):
    put(tmp_path, a__mp4="x", a__txt="a cat")
    for name in ("._a.mp4", "._a.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    put(tmp_path / "__MACOSX", a__mp4="x")
    put(tmp_path / "@eaDir", a__mp4="x")
    (tmp_path / "empty").mkdir()
    assert known(tmp_path) == {"a.mp4": "a cat"}


def test_macos_doubles_in_a_tar_file_are_dropped_before_grouping(tmp_path):
    double = b"\0\5\x16\7" + bytes(100)
    files = {"._0.mp4": double, "0.mp4": b"x", "._0.txt": double, "0.txt": b"a cat", "__MACOSX/a.mp4": b"x"}
    files |= {"desktop.ini": b"x", "LICENSE": b"x", "1.mp4": b"x", "1.caption": b"a dog"}
    path = clip_sets.write_tar(tmp_path / "a.tar", files)
    assert known(path) == {"a.tar/0.mp4": "a cat", "a.tar/1.mp4": "a dog"}


def test_what_the_program_wrote_itself_is_passed_over(tmp_path):
    folder = put(tmp_path, a__mp4="x", a__txt="a cat")
    put(folder / "check", clips__png="x")
    put(folder / "runs/motion", options__toml="x", log__jsonl="{}", motion__safetensors="x")
    put(folder / "runs/motion/previews", **{"step-000250__webp": "x", "step-000250__png": "x"})
    put(folder / "runs/cache", **{f"{'0' * 63}{n}__safetensors": "x" for n in range(3)})
    assert known(folder) == {"a.mp4": "a cat"}


def sequence(folder, count=16):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((48, 64, 3), 10 * number, np.uint8)).save(folder / f"frame_{number:04}.png")
    return folder


@pytest.mark.parametrize("stranger", ["desktop.ini", "readme", "cover.jpg", "frames.zip", "preview.mp4", "info.json"])
def test_a_stranger_among_numbered_pictures_is_named_and_they_stay_a_clip(tmp_path, stranger, caplog):
    sequence(tmp_path / "walk")
    (tmp_path / "walk" / stranger).write_bytes(b"x")
    put(tmp_path, walk__txt="a walk")
    with caplog.at_level(logging.INFO, "stillmotion"):
        assert known(tmp_path) == {"walk": "a walk"}
    assert f"left aside: walk/{stranger}" in caplog.text


def test_posters_beside_clips_make_no_sequence_of_them(tmp_path):
    files = {f"{n}__{suffix}": "x" for n in range(9) for suffix in ("mp4", "txt", "jpg")}
    assert list(known(put(tmp_path, **files))) == [f"{n}.mp4" for n in range(9)]


def test_captions_by_any_name(tmp_path):
    put(tmp_path, a__mp4="x", a__caption="a cat", readme_cat__mp4="x", readme_cat__txt="a reading cat")
    (tmp_path / "license plate.mp4").write_bytes(b"x")
    (tmp_path / "license plate.txt").write_text("a license plate")
    assert known(tmp_path) == {
        "a.mp4": "a cat",
        "license plate.mp4": "a license plate",
        "readme_cat.mp4": "a reading cat",
    }


def test_a_name_that_is_no_utf_8_is_named_at_once(tmp_path):
    cat = os.fsencode(tmp_path) + b"/" + "猫".encode("cp932")
    for suffix in (b".mp4", b".txt"):
        with open(cat + suffix, "wb") as file:
            file.write(b"x")
    ((name, problem),) = known(tmp_path).items()
    assert name.isprintable() and problem.startswith("its name is no UTF-8 text")


@pytest.mark.parametrize("caption", [None, "x"])
def test_pipes_devices_and_circles_of_links_are_not_waited_for(tmp_path, caption):
    put(tmp_path / "x", a__mp4="x", a__txt="x")
    put(tmp_path / "y", b__mp4="x", b__txt="x")
    (tmp_path / "x/to y").symlink_to(tmp_path / "y", target_is_directory=True)
    (tmp_path / "y/to x").symlink_to(tmp_path / "x", target_is_directory=True)
    os.mkfifo(tmp_path / "x/pipe")
    os.mkfifo(tmp_path / "x/pipe.txt")
    os.mkfifo(tmp_path / "x/metadata.jsonl")
    os.mkfifo(tmp_path / "x/all.csv")
    (tmp_path / "x/zero").symlink_to("/dev/zero")
    (tmp_path / "x/gone").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x/socket"))
    assert sorted(name.rpartition("/")[2] for name in known(tmp_path, caption)) == ["a.mp4", "b.mp4"]


def test_a_clip_that_is_a_pipe_is_named(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to("/dev/zero")
    assert main(["check", "--videos", str(tmp_path), "--caption", "x", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a.mp4: there is no such clip" in error and "b.mp4: there is no such clip" in error


def test_many_rows_without_clips_are_a_few_and_a_count(tmp_path, capsys):
    rows = "".join(f"clips/{n}.mp4,x\n" for n in range(3000))
    put(tmp_path, all__csv=csv(rows))
    words = ["check", "--videos", str(tmp_path), "--output", str(tmp_path / "out"), "--first", "5000"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert len(said.err.split("error: ")[-1]) < 2000 and "and 2990 others" in said.err
    assert len(said.out.splitlines()) < 40 and "and 2980 others that cannot be used" in said.out
    assert (tmp_path / "out/clips.png").stat().st_size < 200_000
