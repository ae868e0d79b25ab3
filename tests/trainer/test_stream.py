"""A set too large for memory is streamed in an order that is a function of the seed, and can be resumed anywhere."""

import io
import json
import logging
import pickle
import tarfile
import tempfile
import tracemalloc
import unicodedata
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import webdataset
from stillmotion.trainer.batches import TrainingClip
from stillmotion.trainer.cache import caption_embedding, clip_latents
from stillmotion.trainer.check import table, usable_clips
from stillmotion.trainer.clips import find_clips
from stillmotion.trainer.decoding import ClipError
from stillmotion.trainer.options import ClipOptions
from stillmotion.trainer.pictures import write_mp4
from stillmotion.trainer.shards import fingerprint, opened, shards_of
from stillmotion.trainer.stream import ClipStream, Loader, first_usable, peek, shuffled

SIZE = (32, 16)


def write_tar(path, files, links=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in dict(files).items():
            member = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def samples_in_tar(numbers):
    return {f"{number}{suffix}": "x" for number in numbers for suffix in (".mp4", ".txt")}


def five_tars(tmp_path):
    """Shards of 1, 7, 4, 9 and 2 samples."""
    for number, size in enumerate((1, 7, 4, 9, 2)):
        write_tar(tmp_path / f"shards/{number}.tar", samples_in_tar(range(size)))
    return shards_of(tmp_path / "shards")


def one_tar(tmp_path):
    return shards_of(write_tar(tmp_path / "one.tar", samples_in_tar(range(23))))


def one_table(tmp_path, suffix="jsonl", rows=23):
    path = tmp_path / f"clips.{suffix}"
    with path.open("w") as file:
        if suffix == "csv":
            file.write("file_name,text\n")
            file.writelines(f'clips/{n}.mp4,"clip, number {n}"\n' for n in range(rows))
        else:
            file.writelines(json.dumps({"file_name": f"clips/{n}.mp4", "text": f"{n}"}) + "\n" for n in range(rows))
    return shards_of(path)


def csv_table(tmp_path):
    return one_table(tmp_path, "csv")


def nested_folder(tmp_path):
    for number in range(23):
        path = tmp_path / f"nested/{number % 3}/{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.with_suffix(".txt").write_text("x")
    return shards_of(tmp_path / "nested")


SETS = [five_tars, one_tar, one_table, csv_table, nested_folder]


def name_of(source):
    """Stands in for loading a clip where only the order matters."""
    if source.problem:
        raise ClipError(source.problem)
    return source.name


def stream_of(shards, load=name_of, seed=0, **options):
    return ClipStream(shards, load, seed=seed, buffer=5, **options)


def names_of_epoch(shards, epoch=0, **options):
    stream = stream_of(shards, **options)
    stream.begin(epoch)
    return [source.name for source in stream.samples]


@pytest.mark.parametrize("make", SETS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_processes_together_see_every_sample_once_in_an_epoch(tmp_path, make, world):
    shards = make(tmp_path)
    everything = sorted(source.name for shard in shards for source in shard)
    assert len(set(everything)) == 23
    for epoch in (0, 1, 4):
        shares = [names_of_epoch(shards, epoch, rank=rank, world=world) for rank in range(world)]
        assert sorted(sum(shares, [])) == everything
        assert all(shares)


@pytest.mark.parametrize("make", SETS)
def test_the_order_is_a_function_of_seed_and_epoch(tmp_path, make):
    shards = make(tmp_path)
    orders = [names_of_epoch(shards, epoch, seed=seed) for seed in (0, 1) for epoch in (0, 1)]
    again = [names_of_epoch(shards, epoch, seed=seed) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == again
    in_order = [source.name for shard in shards for source in shard]
    assert len({tuple(order) for order in (*orders, in_order)}) == 5


def test_shards_come_in_an_order_of_their_own_in_each_epoch(tmp_path):
    shards, orders = five_tars(tmp_path), set()
    for seed in (0, 1):
        stream = ClipStream(shards, name_of, seed=seed, buffer=1)  # which shuffles nothing
        for _ in range(2):
            names = list(islice(stream, 23))
            order = list(dict.fromkeys(name.split("/")[0] for name in names))
            assert names == [source.name for tar in order for source in shards[int(tar[0])]]
            orders.add(tuple(order))
    assert len(orders) == 4


def test_epochs_follow_one_another_without_end(tmp_path):
    shards = five_tars(tmp_path)
    names = list(islice(stream_of(shards), 23 * 3))
    assert names == sum((names_of_epoch(shards, epoch) for epoch in range(3)), [])


def test_a_process_that_shares_a_table_gets_other_samples_in_the_next_epoch(tmp_path):
    shards = one_table(tmp_path)
    shares = [set(names_of_epoch(shards, epoch, rank=1, world=3)) for epoch in range(3)]
    assert len(set.union(*shares)) == 23 == sum(map(len, shares))


def test_the_buffer_draws_each_sample_from_those_that_are_next():
    for seed in range(20):
        order = list(shuffled(range(40), 6, torch.Generator().manual_seed(seed)))
        assert sorted(order) == list(range(40))
        assert all(sample < place + 6 for place, sample in enumerate(order))
    first = [next(shuffled(range(40), 6, torch.Generator().manual_seed(seed))) for seed in range(100)]
    assert set(first) == set(range(6))


def with_bad_ones(tmp_path):
    """Three shards of 6 samples; each third sample has no caption."""
    for shard in range(3):
        files = samples_in_tar(range(6))
        del files["1.txt"], files["4.txt"]
        write_tar(tmp_path / f"bad/{shard}.tar", files)
    return shards_of(tmp_path / "bad")


@pytest.mark.parametrize("make", [five_tars, one_table, nested_folder, with_bad_ones])
@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2), (3, 4)])
def test_a_stream_that_skips_goes_on_as_the_uninterrupted_one(tmp_path, make, rank, world):
    shards, options = make(tmp_path), {"rank": rank, "world": world, "skip_bad": True}
    options["held_out"] = [source.name for source in islice((source for shard in shards for source in shard), 2)]
    whole = stream_of(shards, **options)
    clips, positions = zip(*((next(whole), whole.position) for _ in range(100)))
    assert len(set(clips)) >= 10 and positions[-1] > 100
    for taken in (1, 2, 7, 30, 61):
        resumed = stream_of(shards, load=lambda source: pytest.fail("loaded what is skipped"), **options)
        resumed.skip_to(positions[taken - 1] // 2)
        resumed.skip_to(positions[taken - 1])
        resumed.load = name_of
        after = [(next(resumed), resumed.position) for _ in range(taken, 100)]
        assert after == list(zip(clips, positions))[taken:]


class CountedReads:
    """A shard that counts how often it was read from its start."""

    def __init__(self, shard):
        self.shard, self.reads = shard, 0

    def __iter__(self):
        self.reads += 1
        return iter(self.shard)


def test_epochs_that_are_skipped_are_counted_and_not_read(tmp_path):
    shards = [CountedReads(shard) for shard in five_tars(tmp_path)]
    stream = stream_of(shards)
    stream.skip_to(23 * 500 + 11)
    assert (stream.epoch, stream.position) == (500, 23 * 500 + 11)
    assert max(shard.reads for shard in shards) <= 3  # the first epoch, the start of the second, the last
    assert [next(stream) for _ in range(12)] == names_of_epoch(shards, 500)[11:]


def test_a_stream_does_not_go_back(tmp_path):
    stream = stream_of(one_tar(tmp_path))
    stream.skip_to(4)
    with pytest.raises(ValueError, match="at 4 and cannot go back to 3"):
        stream.skip_to(3)


# with clips that can be decoded


class Counting:
    """Stands in for a base model, and counts the frames and captions that it encodes."""

    def __init__(self):
        self.vae, self.text_encoder = torch.nn.Conv2d(3, 4, 1), torch.nn.Linear(1, 6)
        self.frames = self.captions = 0

    def encode_frames(self, vae, frames):
        self.frames += len(frames)
        return vae(F.avg_pool2d(frames, 8))

    def encode_captions(self, base, captions):
        self.captions += len(captions)
        return torch.stack([base.text_encoder(torch.full((77, 1), float(len(caption)))) for caption in captions])

    def loader(self, cache, frames=8):
        options = SimpleNamespace(fps=8, size=SIZE)
        return Loader(
            frames,
            8,
            lambda source: clip_latents(source, options, self, cache, self.encode_frames),
            lambda caption: caption_embedding(caption, self, cache, self.encode_captions),
        )


def drawn(number, frames=8):
    """A square that moves, in the brightness of its number."""
    clip = np.full((frames, 16, 32, 3), 20 * number + 10, np.uint8)
    for k in range(frames):
        clip[k, 4:12, 2 * k : 2 * k + 8] = 220
    return clip


@pytest.fixture
def clip_bytes(tmp_path):
    def make(number, frames=8):
        write_mp4(drawn(number, frames), tmp_path / "drawn.mp4", 8)
        return (tmp_path / "drawn.mp4").read_bytes()

    return make


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_clips_come_decoded_once_and_from_the_cache_in_later_epochs(tmp_path, clip_bytes, temporary):
    for shard in range(2):
        files = {
            f"{n}{end}": text for n in range(2) for end, text in ((".mp4", clip_bytes(2 * shard + n)), (".txt", "x"))
        }
        write_tar(tmp_path / f"shards/{shard}.tar", files)
    base = Counting()
    stream = stream_of(shards_of(tmp_path / "shards"), base.loader(tmp_path / "cache"))
    first, second = ({clip.name: clip for clip in islice(stream, 4)} for _ in range(2))
    assert list(first) != list(second) and sorted(first) == sorted(second)
    assert (base.frames, base.captions) == (4 * 8, 1)
    for name, clip in first.items():
        assert isinstance(clip, TrainingClip) and clip.latents.shape == (8, 4, 2, 4) and clip.caption == "x"
        assert torch.equal(clip.latents, second[name].latents)
    assert len({clip.latents.mean().item() for clip in first.values()}) == 4
    assert not list(temporary.iterdir())


def test_the_same_clip_is_encoded_once_wherever_it_lies(tmp_path, clip_bytes):
    content = clip_bytes(3)
    for name in ("folder", "table"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a clip.mp4").write_bytes(content)
    (tmp_path / "folder/a clip.txt").write_text("a square")
    (tmp_path / "table/metadata.jsonl").write_text('{"file_name": "a clip.mp4", "text": "a square"}')
    write_tar(tmp_path / "shard.tar", {"other.json": '{"caption": "a square"}', "other.mp4": content})
    base = Counting()
    sets = [shards_of(tmp_path / name) for name in ("folder", "table", "shard.tar")]
    clips = [next(stream_of(shards, base.loader(tmp_path / "cache"))) for shards in sets]
    assert [clip.name for clip in clips] == ["a clip.mp4", "a clip.mp4", "shard.tar/other.mp4"]
    assert all(torch.equal(clip.latents, clips[0].latents) for clip in clips)
    assert all(torch.equal(clip.text, clips[0].text) for clip in clips)
    assert (base.frames, base.captions) == (8, 1)


def mixed_tar(tmp_path, clip_bytes):
    """Good clips (good.0, good.1) among some that cannot be used."""
    files = {
        "short.mp4": clip_bytes(1, frames=3),
        "short.txt": "x",
        "good0.mp4": clip_bytes(2),
        "good0.txt": "x",
        "noise.mp4": b"no video " * 99,
        "noise.txt": "x",
        "silent.mp4": clip_bytes(3),
        "good1.mp4": clip_bytes(4),
        "good1.txt": "x",
        "words.txt": "x",
    }
    return shards_of(write_tar(tmp_path / "mixed.tar", files))


REASONS = {
    "mixed.tar/short.mp4": "too short: 0.38 s are 3 frames at 8 fps; 8 frames (1.00 s) are needed",
    "mixed.tar/noise.mp4": "not a video, or cut off",
    "mixed.tar/silent.mp4": "no caption: put a .txt",
    "mixed.tar/words": "no clip in it; after the first dot come .txt",
}


def test_clips_that_cannot_be_used_are_left_out_and_named_once(tmp_path, clip_bytes, temporary, caplog):
    stream = stream_of(mixed_tar(tmp_path, clip_bytes), Counting().loader(tmp_path / "cache"), skip_bad=True)
    with caplog.at_level(logging.WARNING, "stillmotion"):
        names = [next(stream).name for _ in range(6)]
    assert set(names) == {"mixed.tar/good0.mp4", "mixed.tar/good1.mp4"}
    assert stream.position > 12 and stream.skipped.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert stream.skipped[name].startswith(reason)
        assert caplog.text.count(f"{name} is left out: {reason}") == 1
    assert not list(temporary.iterdir())


def test_without_skip_bad_the_first_one_is_an_error(tmp_path, clip_bytes):
    stream = stream_of(mixed_tar(tmp_path, clip_bytes), Counting().loader(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"mixed.tar/(short|noise|silent|words)[.mp4]* cannot be used: .*--skip-bad"):
        for _ in range(3):
            next(stream)


def test_a_set_without_a_clip_is_an_error_and_no_endless_loop(tmp_path):
    bad = shards_of(write_tar(tmp_path / "bad.tar", {"a.mp4": b"", "a.txt": "x", "b.mp4": b"x"}))
    with pytest.raises(
        ValueError, match="no clip is left .* 0 are held out, and 2 cannot be used; bad.tar/a.mp4: empty"
    ):
        next(stream_of(bad, Counting().loader(tmp_path / "cache"), skip_bad=True))
    shards = one_tar(tmp_path)
    with pytest.raises(ValueError, match="no clip is left to train on: 23 are held out"):
        next(stream_of(shards, held_out=names_of_epoch(shards)))


def test_an_epoch_without_a_clip_goes_by_where_the_set_has_one(tmp_path):
    files = samples_in_tar(range(3))
    del files["0.txt"], files["1.txt"]
    shards = shards_of(write_tar(tmp_path / "bad.tar", files))
    for rank in range(4):  # more processes than samples
        stream = stream_of(shards, rank=rank, world=4, skip_bad=True)
        assert [next(stream) for _ in range(3)] == ["bad.tar/2.mp4"] * 3


def test_clips_that_are_held_out_are_the_first_that_can_be_used_for_every_process(tmp_path, clip_bytes):
    shards, load = mixed_tar(tmp_path, clip_bytes), Counting().loader(tmp_path / "cache")
    (held_out,) = first_usable(shards, 1, load, skip_bad=True)
    assert held_out.name == "mixed.tar/good0.mp4" and held_out.latents.shape == (8, 4, 2, 4)
    for rank in range(2):
        stream = stream_of(shards, load, rank=rank, world=2, held_out=[held_out.name], skip_bad=True)
        assert [next(stream).name for _ in range(3)] == ["mixed.tar/good1.mp4"] * 3
    with pytest.raises(ValueError, match="short.mp4 cannot be used"):
        first_usable(shards, 1, load)
    every = first_usable(shards, 3, load, skip_bad=True)
    assert [clip.name for clip in every] == ["mixed.tar/good0.mp4", "mixed.tar/good1.mp4"]


def test_a_peek_reports_the_first_samples(tmp_path, clip_bytes, temporary):
    options = ClipOptions(videos=tmp_path, size=SIZE, frames=8)
    shards = mixed_tar(tmp_path, clip_bytes)
    reports = peek(shards, 4, options)
    assert [report.source.name.split("/")[1] for report in reports] == [
        "short.mp4",
        "good0.mp4",
        "noise.mp4",
        "silent.mp4",
    ]
    assert [bool(report.problem) for report in reports] == [True, False, True, True]
    assert [report.source for report in reports] == list(shards[0])[:4]
    assert reports[1].window.shape == (8, 16, 32, 3) and "mixed.tar/good0.mp4" in table(reports)
    with pytest.raises(ValueError, match="3 of 4 clips cannot be used.*silent.mp4: no caption"):
        usable_clips(reports, skip_bad=False)
    assert peek(shards, 99, options)[-1].problem == "no clip in it; after the first dot come .txt"
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_large_table_is_never_held_in_memory(tmp_path, suffix):
    stream = ClipStream(one_table(tmp_path, suffix, rows=20_000), name_of, seed=0, buffer=100)
    stream.skip_to(18_500)  # not traced, which takes its time
    tracemalloc.start()
    stream.skip_to(20_300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.epoch == 1 and peak < 300_000


def test_a_large_tar_file_is_never_held_in_memory(tmp_path):
    files = {f"{n}{end}": content for n in range(500) for end, content in ((".mp4", bytes(5000)), (".txt", "x"))}
    (shard,) = shards_of(write_tar(tmp_path / "large.tar", files))
    tracemalloc.start()
    assert sum(1 for _ in shard) == 500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # of 3.5 MB


# what there is


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
        write_tar(tmp_path / f"a/{number:06}.tar", samples_in_tar([number]))
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
    write_tar(tmp_path / "tars/1.tar", samples_in_tar([1]))
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
    makes = (one_tar, one_table, nested_folder)
    first = [fingerprint(make(tmp_path)) for make in makes]
    assert first == [fingerprint(make(tmp_path)) for make in makes] and len(set(first)) == 3
    write_tar(tmp_path / "one.tar", samples_in_tar(range(24)))
    (tmp_path / "clips.jsonl").write_text((tmp_path / "clips.jsonl").read_text().replace('"22"', '"23"'))
    (tmp_path / "nested/0/0.mp4").rename(tmp_path / "nested/1/0.mp4")
    changed = [fingerprint(shards_of(tmp_path / name)) for name in ("one.tar", "clips.jsonl", "nested")]
    assert not set(first) & set(changed)


# hostile and broken input


def sources_in(path, caption=None):
    return {source.name: source.problem or source.caption for shard in shards_of(path, caption) for source in shard}


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
        Counting().loader(tmp_path)(bad)
    assert good.name == "b.mp4" and not good.problem


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"file_name,text\na.mp4,caf\xe9\n", "a.csv is not UTF-8 text"),
        ("a.csv", b'file_name,text\na.mp4,"' + b"x" * 200_000, "a.csv cannot be read after line 0: field larger"),
        ("a.jsonl", b"\xff", "a.jsonl is not UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        next(stream_of(shards_of(tmp_path / name), skip_bad=True))


def test_a_table_may_spell_names_in_another_normal_form(tmp_path, clip_bytes):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        (tmp_path / f"{form} {unicodedata.normalize(form, 'Tür')}.mp4").write_bytes(clip_bytes(1))
        row = {"file_name": f"{form} {unicodedata.normalize(other, 'Tür')}.mp4", "text": "a door"}
        (tmp_path / f"{form}.jsonl").write_text("\ufeff" + json.dumps(row), encoding="utf-8")
        clip = next(stream_of(shards_of(tmp_path / f"{form}.jsonl"), Counting().loader(tmp_path / "cache")))
        assert clip.caption == "a door"


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 10240, b"no tar file " * 99, b"\x1f\x8b" + b"x" * 999, b"\xff" * 2048]
)
def test_a_file_that_is_no_tar_file_or_empty_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    reason = "no sample in it" if content.startswith(b"\0") else "no tar file, or one that is damaged"
    with pytest.raises(ValueError, match=f"a.tar cannot be used: {reason}"):
        next(stream_of(shards_of(tmp_path / "a.tar")))


def test_a_tar_file_that_is_cut_off_gives_what_came_before_and_says_so(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.mp4": b"v" * 1500, "0.txt": "zero", "1.mp4": b"v" * 1500, "1.txt": "one"})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for length in range(0, headers[3] + 1024, 256):
        path.write_bytes(whole[:length])
        found = sources_in(path)
        assert ("a.tar/0.mp4" in found) == (length >= headers[2] + 512)  # not before it is known to be complete
        assert ("cut off after" in found["a.tar"]) and "a.tar/1.mp4" not in found
    path.write_bytes(whole[: headers[3] + 1024] + b"nonsense" * 64)
    found = sources_in(path)
    assert found["a.tar/0.mp4"] == "zero" and "after 1 samples (it has no end)" in found["a.tar"]
    path.write_bytes(whole)
    assert sources_in(path) == {"a.tar/0.mp4": "zero", "a.tar/1.mp4": "one"}


def test_a_size_below_zero_is_no_endless_loop(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.mp4": b"v" * 1500, "0.txt": "zero"})
    data = bytearray(path.read_bytes())
    data[124:136] = (-1024).to_bytes(12, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert list(sources_in(path)) == ["a.tar"]


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
    shards = shards_of(write_tar(tmp_path / "a.tar", files))
    assert next(stream_of(shards, Counting().loader(tmp_path / "cache"), skip_bad=True)).name == "a.tar/a.mp4"
    found = sources_in(tmp_path / "a.tar")
    assert "no clip in it" in found["a.tar/b"] and ".json is not" in found["a.tar/c.mp4"]
    peek(shards, 3, ClipOptions(videos=tmp_path, size=SIZE, frames=8))
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
    shards = shards_of(write_tar(tmp_path / "a.tar", files, links))
    base = Counting()
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
        ({"a.json": "[1]"}, 'its .json has no "text" or "caption"'),
        ({"a.json": "[" * 100_000}, "its .json is not JSON: maximum recursion"),
        ({"a.json": "nonsense"}, "its .json is not JSON: Expecting value"),
        ({"b.txt": "x"}, "no caption: put a .txt or .json of the same name right after it"),
    ],
)
def test_captions_in_tar_files(tmp_path, files, caption):
    path = write_tar(tmp_path / "a.tar", {"a.mp4": "v", **files})
    assert sources_in(path)["a.tar/a.mp4"].startswith(caption)
    assert sources_in(path, "one for all")["a.tar/a.mp4"] == "one for all"


def test_the_kinds_of_files_in_a_tar_file(tmp_path):
    files = ["a.webp", "a.mp4", "a.txt", "b.GIF", "b.json", ".c.mp4", "._d.mp4", "e", "f.v2.mp4"]
    path = write_tar(tmp_path / "a.tar", {name: '{"text": "x"}' for name in files})
    assert sources_in(path, "x") == {
        "a.tar/a.mp4": "x",
        "a.tar/b.gif": "x",
        "a.tar/f": "no clip in it; after the first dot come .v2.mp4",
    }


def test_a_tar_file_that_shrinks_meanwhile_is_named(tmp_path, clip_bytes):
    path = write_tar(tmp_path / "a.tar", {"a.mp4": clip_bytes(1), "a.txt": "x"})
    (source,) = shards_of(path)[0]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ClipError, match="a.tar has become shorter"):
        Counting().loader(tmp_path / "cache")(source)
