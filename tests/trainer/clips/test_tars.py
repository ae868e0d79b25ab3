"""Clips in tar files: webdataset's form, nothing unpickled, nothing unpacked, nothing lost in silence."""

import json
import pickle
import tarfile
import tracemalloc

import clip_sets
import pytest
import webdataset
from stillmotion.trainer.clips.decoding import ClipError
from stillmotion.trainer.clips.find import ClipFormat
from stillmotion.trainer.clips.shards import opened, shards_of
from stillmotion.trainer.clips.stream import peek


def test_a_large_tar_file_is_never_held_in_memory(tmp_path):
    files = {f"{n}{end}": content for n in range(500) for end, content in ((".mp4", bytes(5000)), (".txt", "x"))}
    (shard,) = shards_of(clip_sets.write_tar(tmp_path / "large.tar", files))
    tracemalloc.start()
    assert sum(1 for _ in shard) == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # of 3.5 MB


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 10240, b"no tar file " * 99, b"\x1f\x8b" + b"x" * 999, b"\xff" * 2048]
)
def test_a_file_that_is_no_tar_file_or_empty_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    reason = "no sample in it" if content.startswith(b"\0") else "no tar file, or one that is damaged"
    with pytest.raises(ValueError, match=f"a.tar cannot be used: {reason}"):
        next(clip_sets.stream_of(shards_of(tmp_path / "a.tar")))


def test_a_tar_file_that_is_cut_off_gives_what_came_before_and_says_so(tmp_path):
    path = clip_sets.write_tar(
        tmp_path / "a.tar", {"0.mp4": b"v" * 1500, "0.txt": "zero", "1.mp4": b"v" * 1500, "1.txt": "one"}
    )
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for length in range(0, headers[3] + 1024, 256):
        path.write_bytes(whole[:length])
        found = clip_sets.sources_in(path)
        assert ("a.tar/0.mp4" in found) == (length >= headers[2] + 512)  # not before it is known to be complete
        assert ("cut off after" in found["a.tar"]) and "a.tar/1.mp4" not in found
    path.write_bytes(whole[: headers[3] + 1024] + b"nonsense" * 64)
    found = clip_sets.sources_in(path)
    assert found["a.tar/0.mp4"] == "zero" and "after 1 samples (it has no end)" in found["a.tar"]
    path.write_bytes(whole)
    assert clip_sets.sources_in(path) == {"a.tar/0.mp4": "zero", "a.tar/1.mp4": "one"}


def test_a_size_below_zero_is_no_endless_loop(tmp_path):
    path = clip_sets.write_tar(tmp_path / "a.tar", {"0.mp4": b"v" * 1500, "0.txt": "zero"})
    data = bytearray(path.read_bytes())
    data[124:136] = (-1024).to_bytes(12, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert list(clip_sets.sources_in(path)) == ["a.tar"]


class Danger:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_in_a_tar_file_are_never_opened(tmp_path, clip_bytes):
    mark = tmp_path / "unpickled"
    danger = pickle.dumps(Danger(str(mark)))
    files = {f"a.{kind}": danger for kind in ("pkl", "pyd", "pickle", "pt", "pth")}
    files |= {"a.mp4": clip_bytes(1), "a.txt": "x", "b.pkl": danger, "c.mp4": danger, "c.json": danger}
    shards = shards_of(clip_sets.write_tar(tmp_path / "a.tar", files))
    assert (
        next(clip_sets.stream_of(shards, clip_sets.Counting().loader(tmp_path / "cache"), skip_bad=True)).name
        == "a.tar/a.mp4"
    )
    found = clip_sets.sources_in(tmp_path / "a.tar")
    assert "a.tar/b" not in found and ".json is not" in found["a.tar/c.mp4"]
    peek(shards, 3, ClipFormat(8, 8, clip_sets.SIZE))
    assert not mark.exists()


def test_members_of_a_tar_file_are_bytes_whatever_their_names_are(tmp_path, clip_bytes, temporary, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    outside = [tmp_path / "other.mp4", tmp_path / "evil.mp4", tmp_path / "absolute.mp4"]
    for path in outside:
        path.write_bytes(clip_bytes(9))
    names = [
        "../evil",
        str(tmp_path / "absolute"),
        "a/../../evil",
        "Tür 猫/🎸",
        "C:\\evil",
        "line\nbreak \x1b[31m",
        "x" * 300,
    ]
    files = {f"{name}{end}": text for name in names for end, text in ((".mp4", clip_bytes(1)), (".txt", "x"))}
    links = [("link.mp4", str(outside[0])), ("../link.txt", "/etc/passwd")]
    shards = shards_of(clip_sets.write_tar(tmp_path / "a.tar", files, links))
    base = clip_sets.Counting()
    clips = [base.loader(tmp_path / "cache")(source) for source in shards[0]]
    assert base.frames == 8 and len(clips) == len(names)  # all the same bytes
    assert "a.tar/Tür 猫/🎸.mp4" in {clip.name for clip in clips}
    assert all(clip.name.isprintable() for clip in clips)
    assert all(path.read_bytes() == clip_bytes(9) for path in outside) and not list(temporary.iterdir())


def test_what_webdataset_writes_and_reads_is_read_alike(tmp_path, clip_bytes):
    keys = ["a", "b/000001", "Tür 猫"]
    for number, key in enumerate(keys):
        with webdataset.ShardWriter(str(tmp_path / f"{number}-%06d.tar"), maxcount=2, verbose=0) as writer:
            for half in "xy":
                sample = {"mp4": clip_bytes(number) + half.encode(), "json": {"text": f"{key} {half}"}, "cls": number}
                writer.write({"__key__": f"{key}{half}", **sample})
    files = sorted(map(str, tmp_path.glob("*.tar")))
    theirs = list(webdataset.tarfile_to_samples()({"url": file} for file in files))
    ours = [source for shard in shards_of(tmp_path) for source in shard]
    assert len(ours) == 6
    for sample, source in zip(theirs, ours, strict=True):
        assert source.name.partition(".tar/")[2] == sample["__key__"] + ".mp4"
        assert source.caption == json.loads(sample["json"])["text"]
        with opened(source) as clip:
            assert clip.path.read_bytes() == sample["mp4"]


@pytest.mark.parametrize(
    "files, caption",
    [
        ({"a.txt": "\ufeff a  cat\n"}, "a cat"),
        ({"a.json": '{"text": "a cat", "caption": "a dog"}'}, "a cat"),
        ({"a.json": '{"caption": "a cat"}'}, "a cat"),
        ({"a.json": "nonsense", "a.TXT": "a cat"}, "a cat"),
        ({"a.txt": " \n"}, "its caption is empty (.txt)"),
        ({"a.txt": b"caf\xe9"}, "its .txt is not UTF-8 text"),
        ({"a.txt": "x" * 2_000_000}, "its .txt has 2000000 bytes, and a caption at most 1048576"),
        ({"a.json": '{"text": "\\ud800"}'}, "its .json is not UTF-8 text"),
        ({"a.json": '{"text": 3}'}, 'its .json has no "text" or "caption"'),
        ({"a.json": "[1]"}, "its .json is not an object"),
        ({"a.json": "[" * 100_000}, "its .json is not JSON that can be read: it is nested too deeply"),
        ({"a.json": "nonsense"}, "its .json is not JSON: Expecting value"),
        ({"b.txt": "x"}, "no caption: put a .txt or .json of the same name right after it"),
    ],
)
def test_captions_in_tar_files(tmp_path, files, caption):
    path = clip_sets.write_tar(tmp_path / "a.tar", {"a.mp4": "v", **files})
    assert clip_sets.sources_in(path)["a.tar/a.mp4"].startswith(caption)
    assert clip_sets.sources_in(path, "one for all")["a.tar/a.mp4"] == "one for all"


def test_the_kinds_of_files_in_a_tar_file(tmp_path):
    files = ["a.webp", "a.mp4", "a.txt", "b.GIF", "b.json", ".c.mp4", "._d.mp4", "e", "f.v2.mp4", "g.blend"]
    path = clip_sets.write_tar(tmp_path / "a.tar", {name: '{"text": "x"}' for name in files})
    assert clip_sets.sources_in(path, "x") == {
        "a.tar/a.mp4": "x",
        "a.tar/b.gif": "x",
        "a.tar/f": "no clip in it; after the first dot come .v2.mp4",
    }


def test_a_tar_file_that_shrinks_meanwhile_is_named(tmp_path, clip_bytes):
    path = clip_sets.write_tar(tmp_path / "a.tar", {"a.mp4": clip_bytes(1), "a.txt": "x"})
    (source,) = shards_of(path)[0]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ClipError, match="a.tar has become shorter"):
        clip_sets.Counting().loader(tmp_path / "cache")(source)
