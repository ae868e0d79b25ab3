"""Every clip in a folder is found with its caption, or named with what is wrong."""

import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.clips.find import find_clips


def folder_of(tmp_path, *names, **texts):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def captions(sources):
    return {source.name: source.problem or source.caption for source in sources}


def rows(*pairs, key="text"):
    return "\n".join(json.dumps({"file_name": name, key: text}) for name, text in pairs)


def test_clips_come_in_natural_order_from_all_folders(tmp_path):
    folder = folder_of(
        tmp_path, "clip 10.mp4", "clip 9.MP4", "b/2.avi", "b/1.mkv", ".hidden.mp4", "Thumbs.db", "notes.md"
    )
    names = [source.name for source in find_clips(folder, "a caption")]
    assert names == ["clip 9.MP4", "clip 10.mp4", "b/1.mkv", "b/2.avi"]


def test_a_folder_of_numbered_pictures_is_one_clip(tmp_path):
    folder = folder_of(tmp_path, "a.mp4", "walk/1.png", "walk/2.png", "walk/10.png", walk="a walk", a="a cat")
    assert captions(find_clips(folder)) == {"a.mp4": "a cat", "walk": "a walk"}
    assert captions(find_clips(folder / "walk")) == {"walk": "a walk"}


def test_animated_pictures_with_numbers_are_a_clip_each(tmp_path):
    for number in (1, 2):
        frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 90)]
        frames[0].save(tmp_path / f"{number}.webp", save_all=True, append_images=frames[1:], duration=100)
    assert list(captions(find_clips(tmp_path, "x"))) == ["1.webp", "2.webp"]


def test_one_file_is_found_with_its_own_caption(tmp_path):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", a="a cat", b="a dog")
    assert captions(find_clips(folder / "b.mp4")) == {"b.mp4": "a dog"}


@pytest.mark.parametrize("name", ["Tür 猫.mp4", "🎸 é.mp4"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_any_script_and_normal_form_match(tmp_path, name, form):
    folder = folder_of(tmp_path, unicodedata.normalize("NFD", name))
    (folder / "metadata.jsonl").write_text(rows((unicodedata.normalize(form, name), "ein Kätzchen")), encoding="utf-8")
    assert [source.caption for source in find_clips(folder)] == ["ein Kätzchen"]


@pytest.mark.parametrize("key", ["text", "caption"])
def test_captions_from_metadata(tmp_path, key):
    folder = folder_of(tmp_path, "a.mp4", "b/c.mp4")
    (folder / "metadata.jsonl").write_text(rows(("./a.mp4", "a  cat\n"), ("b\\c.mp4", "a dog"), key=key) + "\n\n")
    assert captions(find_clips(folder)) == {"a.mp4": "a cat", "b/c.mp4": "a dog"}


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_captions_from_a_table(tmp_path, start):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4")
    table = f'{start}file_name,caption\na.mp4,"a cat, black"\nb.mp4,a dog\n'
    (folder / "captions.csv").write_text(table, encoding="utf-8")
    assert captions(find_clips(folder)) == {"a.mp4": "a cat, black", "b.mp4": "a dog"}


def test_one_caption_for_all_stands_above_the_files(tmp_path):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", a="a cat")
    assert captions(find_clips(folder, "a motion")) == {"a.mp4": "a motion", "b.mp4": "a motion"}


def test_what_does_not_match_is_named(tmp_path, caplog):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", "c.mp4", a="a cat", c="  ", lost="a bird", README="hello")
    (folder / "a.mp4.txt").write_text("a dog")
    with caplog.at_level(logging.INFO, "stillmotion"):
        found = captions(find_clips(folder))
    assert found.pop("a.mp4") == "two captions: a.txt and a.mp4.txt"
    assert found.pop("b.mp4").startswith("no caption: write b.txt beside it")
    assert found.pop("c.mp4") == "its caption is empty (c.txt)"
    assert not found
    assert "2 files of" in caplog.text and "left aside: lost.txt, README.txt" in caplog.text


def test_a_table_alone_has_the_captions_of_its_folder(tmp_path, caplog):
    folder = folder_of(tmp_path, "a.mp4", "b.mp4", a="a cat")
    (folder / "metadata.jsonl").write_text(rows(("a.mp4", "a dog")))
    with caplog.at_level(logging.INFO, "stillmotion"):
        assert captions(find_clips(folder)) == {"a.mp4": "a dog"}
    assert "its tables alone are read: 1, from metadata.jsonl on" in caplog.text


def test_the_same_caption_twice_is_one(tmp_path):
    folder = folder_of(tmp_path, "a.mp4", a="a cat")
    (folder / "a.mp4.caption").write_text("a  cat")
    assert captions(find_clips(folder)) == {"a.mp4": "a cat"}


@pytest.mark.parametrize("name", ["../secret.mp4", "/secret.mp4"])
def test_metadata_cannot_name_a_file_outside_the_folder(tmp_path, name):
    (tmp_path / "secret.mp4").write_bytes(b"x")
    folder = folder_of(tmp_path / "clips", "a.mp4", a="a cat")
    (folder / "metadata.jsonl").write_text(rows((name, "mine")))
    assert captions(find_clips(folder)) == {name: "metadata.jsonl, line 1 names no file below clips"}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.jsonl", b'{"file_name": "a.mp4"', "metadata.jsonl, line 1: is not JSON"),
        ("metadata.jsonl", b"[1]", "metadata.jsonl, line 1: is not an object"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "prompt": "x"}', "line 1: needs file_name and text"),
        ("metadata.jsonl", b'{"file_name": 3, "text": "x"}', "line 1: needs file_name and text"),
        ("metadata.jsonl", b'{"file_name": "a.mp4", "text": "x", "text": "y"}', "line 1: says 'text' twice"),
        ("a.txt", b"caf\xe9", "a.mp4: a.txt is not UTF-8 text"),
        ("a.txt", b"x" * 2_000_000, "a.mp4: a.txt has more than 1048576 bytes"),
    ],
)
def test_a_caption_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    folder = folder_of(tmp_path, "a.mp4")
    (folder / name).write_bytes(content)
    ((name, problem),) = captions(find_clips(folder)).items()
    assert message in f"{name}: {problem}"


def test_no_folder_and_no_clips_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_clips(tmp_path / "gone")
    folder_of(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="holds no clips"):
        find_clips(tmp_path)
    with pytest.raises(ValueError, match="notes.txt is no clip"):
        find_clips(tmp_path / "notes.txt")


def test_a_link_back_to_its_own_folder_ends(tmp_path):
    folder = folder_of(tmp_path, "a.mp4")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    assert list(captions(find_clips(folder, "x"))) == ["a.mp4"]


def test_a_relative_folder_is_as_good(tmp_path, monkeypatch):
    folder_of(tmp_path, "a.mp4", a="a cat")
    monkeypatch.chdir(tmp_path)
    assert captions(find_clips(Path("."))) == {"a.mp4": "a cat"}
