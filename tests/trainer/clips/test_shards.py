"""What a set is made of: folders, tables, tar files by their names; and what is wrong with a broken one."""

import json
import logging
import unicodedata

import clip_sets
import pytest
from stillmotion.trainer.clips.decoding import ClipError
from stillmotion.trainer.clips.find import find_clips
from stillmotion.trainer.clips.shards import set_hash, shards_of


def test_a_folder_has_the_clips_that_find_clips_knows(tmp_path):
    texts = {
        **{
            "a.txt": "a cat",
            "a.mp4.txt": "a cat",
            "b.txt": "one",
            "b.mp4.txt": "two",
            "lost.txt": "x",
            "README.txt": "x",
        },
        **{"deep/er/10.txt": "ten", "deep/er/9.txt": " ", "walk.txt": "a walk", "v1.5.txt": "x", "v1.5.mp4.txt": "y"},
    }
    for name in ("a.mp4", "b.mp4", "c.gif", ".hidden.mp4", "deep/er/10.mp4", "deep/er/9.mp4", "v1.5.mp4", "v1.5/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("walk/1.png", "walk/2.png", "deep/notes.md", "twice/ä.mp4", "twice/ä.webm", "empty/.nothing"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    texts["twice/" + unicodedata.normalize("NFD", "ä.txt")] = "the same"
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "deep/back").symlink_to(tmp_path, target_is_directory=True)

    def known(sources):
        return sorted((source.name, source.caption, source.problem or "", source.missing) for source in sources)

    for caption in (None, "one for all"):
        (shard,) = shards_of(tmp_path, caption)
        assert known(shard) == known(find_clips(tmp_path, caption))
    assert {source.name: source.problem or source.caption for source in shards_of(tmp_path)[0]} == {
        "a.mp4": "a cat",
        "b.mp4": "two captions: b.txt and b.mp4.txt",
        "c.gif": "no caption: write c.txt beside it, or give --caption",
        "v1.5.mp4": "two captions: v1.5.txt and v1.5.mp4.txt",
        "v1.5": "x",
        "walk": "a walk",
        "deep/er/9.mp4": "its caption is empty (deep/er/9.txt)",
        "deep/er/10.mp4": "ten",
        "twice/ä.mp4": "the same",
        "twice/ä.webm": "the same",
    }
    (one,) = shards_of(tmp_path / "a.mp4")
    assert [(source.name, source.caption) for source in one] == [("a.mp4", "a cat")]


def test_a_folder_is_read_in_natural_order_one_directory_after_the_other(tmp_path):
    for name in ("b/2.mp4", "b/10.mp4", "a/x.mp4", "c 9.mp4", "c 10.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (shard,) = shards_of(tmp_path, "x")
    assert [source.name for source in shard] == ["c 9.mp4", "c 10.mp4", "a/x.mp4", "b/2.mp4", "b/10.mp4"]


def test_braces_name_tar_files_and_folders(tmp_path):
    for number in range(9, 13):
        clip_sets.write_tar(tmp_path / f"a/{number:06}.tar", clip_sets.samples_in_tar([number]))
    shards = shards_of(tmp_path / "a/{000009..000011}.tar")
    assert [shard.name for shard in shards] == ["000009.tar", "000010.tar", "000011.tar"]
    assert [source.name for source in shards[2]] == ["000011.tar/11.mp4"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/metadata.jsonl").write_text('{"file_name": "x.mp4", "text": "x"}')
    names = [source.name for shard in shards_of(str(tmp_path / "{a,b}")) for source in shard]
    assert names == [*(f"a/{n:06}.tar/{n}.mp4" for n in range(9, 13)), "b/x.mp4"]
    with pytest.raises(FileNotFoundError, match="000013.tar does not exist"):
        shards_of(tmp_path / "a/{000012..000013}.tar")
    with pytest.raises(
        ValueError, match=r"12\.\.13\.tar has a brace without its other half; shards/\{000\.\.123\}\.tar"
    ):
        shards_of(tmp_path / "{12..13.tar")


def test_tar_files_and_tables_anywhere_in_a_folder_are_the_set(tmp_path, caplog):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").touch()
    (tmp_path / "clips/b.mp4").touch()
    (tmp_path / "train.csv").write_text("file_name,text\nclips/a.mp4,a cat\n")
    with caplog.at_level(logging.INFO, "stillmotion"):
        (shard,) = shards_of(tmp_path)
    assert [(source.name, source.caption) for source in shard] == [("clips/a.mp4", "a cat")]
    assert "its tables alone are read: 1, from train.csv on" in caplog.text
    (everything,) = shards_of(tmp_path, "x")  # the caption makes the table needless
    assert [source.name for source in everything] == ["clips/a.mp4", "clips/b.mp4"]
    clip_sets.write_tar(tmp_path / "tars/1.tar", clip_sets.samples_in_tar([1]))
    assert [source.name for shard in shards_of(tmp_path) for source in shard] == ["tars/1.tar/1.mp4"]


def test_what_holds_no_clips_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        shards_of(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds no clips"):
        shards_of(tmp_path)
    (tmp_path / "lost.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no clips"):
        shards_of(tmp_path)
    (tmp_path / "0.tar.gz").touch()
    for path in (tmp_path, tmp_path / "0.tar.gz"):
        with pytest.raises(ValueError, match="0.tar.gz is compressed"):
            shards_of(path)


def test_the_fingerprint_tells_sets_apart(tmp_path):
    makes = (clip_sets.one_tar, clip_sets.one_table, clip_sets.nested_folder)
    first = [set_hash(make(tmp_path)) for make in makes]
    assert first == [set_hash(make(tmp_path)) for make in makes] and len(set(first)) == 3
    clip_sets.write_tar(tmp_path / "one.tar", clip_sets.samples_in_tar(range(24)))
    (tmp_path / "clips.jsonl").write_text((tmp_path / "clips.jsonl").read_text().replace('"22"', '"23"'))
    (tmp_path / "nested/0/0.mp4").rename(tmp_path / "nested/1/0.mp4")
    changed = [set_hash(shards_of(tmp_path / name)) for name in ("one.tar", "clips.jsonl", "nested")]
    assert not set(first) & set(changed)


def test_a_table_cannot_lead_out_of_its_folder(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"mine")
    folder = tmp_path / "set"
    folder.mkdir()
    names = [
        "../secret.mp4",
        str(tmp_path / "secret.mp4"),
        "a/../../secret.mp4",
        "C:\\secret.mp4",
        "\\\\host\\a.mp4",
        "",
        ".",
    ]
    rows = [json.dumps({"file_name": name, "text": "x"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    (shard,) = shards_of(folder)
    for number, source in enumerate(shard, start=1):
        assert source.problem == f"metadata.jsonl, line {number} names no file below set" and source.missing
    assert number == len(names)


@pytest.mark.parametrize(
    "row, problem",
    [
        ('{"file_name": "a.mp4"', "is not JSON"),
        ("[" * 100_000, "recursion"),
        ("[1]", "is not an object"),
        ('{"file_name": "a.mp4", "prompt": "x"}', "needs file_name and text"),
        ('{"file_name": "a.mp4", "text": "\\ud800"}', "surrogates"),
        ('{"file_name": "\\ud800.mp4", "text": "x"}', "surrogates"),
        ('{"file_name": "a.mp4", "text": " "}', "its caption is empty"),
        ('{"file_name": "a.mp4", "text": "gone"}', "there is no such clip"),
        ('{"file_name": "a\\u0000.mp4", "text": "gone"}', "there is no such clip"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_problem_of_its_own(tmp_path, row, problem):
    (tmp_path / "clips.jsonl").write_text(f'{row}\n\n{{"file_name": "b.mp4", "text": "x"}}\n')
    bad, good = shards_of(tmp_path / "clips.jsonl")[0]
    with pytest.raises(ClipError, match=problem):
        clip_sets.Counting().loader(tmp_path)(bad)
    assert good.name == "b.mp4" and not good.problem


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"file_name,text\na.mp4,caf\xe9\n", "a.csv is not UTF-8 text"),
        ("a.csv", b'file_name,text\na.mp4,"' + b"x" * 200_000, "a.csv, line 2 cannot be read: field larger"),
        ("a.csv", b'file_name,text\na.mp4,"a cat\nb.mp4,a dog\n', "a.csv, line 3 cannot be read: unexpected end"),
        ("a.csv", b'file_name,text\na.mp4,"a "red" cat"\n', "a.csv, line 2 cannot be read: .*quotes"),
        ("a.csv", b"name,text\na.mp4,x\n", "a.csv, line 1 needs file_name and text"),
        ("a.csv", b"file_name;text\na.mp4;x\n", "a.csv, line 1 needs file_name and text"),
        ("a.jsonl", b"\xff", "a.jsonl is not UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        next(clip_sets.stream_of(shards_of(tmp_path / name), skip_bad=True))


def test_a_table_may_spell_names_in_another_normal_form(tmp_path, clip_bytes):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        (tmp_path / f"{form} {unicodedata.normalize(form, 'Tür')}.mp4").write_bytes(clip_bytes(1))
        row = {"file_name": f"{form} {unicodedata.normalize(other, 'Tür')}.mp4", "text": "a door"}
        (tmp_path / f"{form}.jsonl").write_text("\ufeff" + json.dumps(row), encoding="utf-8")
        clip = next(
            clip_sets.stream_of(shards_of(tmp_path / f"{form}.jsonl"), clip_sets.Counting().loader(tmp_path / "cache"))
        )
        assert clip.caption == "a door"
