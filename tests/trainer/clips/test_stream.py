"""A set too large for memory is streamed in an order that is a function of the seed, and can be resumed anywhere."""

import logging
import os
import tracemalloc
from itertools import islice

import clip_sets
import pytest
import torch
from stillmotion.trainer.clips.batches import TrainingClip
from stillmotion.trainer.clips.find import ClipFormat, find_clips
from stillmotion.trainer.clips.inspect import table, usable_clips
from stillmotion.trainer.clips.shards import shards_of
from stillmotion.trainer.clips.stream import ClipStream, every_usable, first_usable, peek, shuffled


def names_of_epoch(shards, epoch=0, **options):
    stream = clip_sets.stream_of(shards, **options)
    stream.begin(epoch)
    return [source.name for source in stream.samples]


@pytest.mark.parametrize("make", clip_sets.SETS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_processes_together_see_every_sample_once_in_an_epoch(tmp_path, make, world):
    shards = make(tmp_path)
    everything = sorted(source.name for shard in shards for source in shard)
    assert len(set(everything)) == 23
    for epoch in (0, 1, 4):
        shares = [names_of_epoch(shards, epoch, rank=rank, world=world) for rank in range(world)]
        assert sorted(sum(shares, [])) == everything
        assert all(shares)


@pytest.mark.parametrize("make", clip_sets.SETS)
def test_the_order_is_a_function_of_seed_and_epoch(tmp_path, make):
    shards = make(tmp_path)
    orders = [names_of_epoch(shards, epoch, seed=seed) for seed in (0, 1) for epoch in (0, 1)]
    again = [names_of_epoch(shards, epoch, seed=seed) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == again
    in_order = [source.name for shard in shards for source in shard]
    assert len({tuple(order) for order in (*orders, in_order)}) == 5


def test_shards_come_in_an_order_of_their_own_in_each_epoch(tmp_path):
    shards, orders = clip_sets.five_tars(tmp_path), set()
    for seed in (0, 1):
        stream = ClipStream(shards, clip_sets.name_of, seed=seed, buffer=1)  # which shuffles nothing
        for _ in range(2):
            names = list(islice(stream, 23))
            order = list(dict.fromkeys(name.split("/")[0] for name in names))
            assert names == [source.name for tar in order for source in shards[int(tar[0])]]
            orders.add(tuple(order))
    assert len(orders) == 4


def test_epochs_follow_one_another_without_end(tmp_path):
    shards = clip_sets.five_tars(tmp_path)
    names = list(islice(clip_sets.stream_of(shards), 23 * 3))
    assert names == sum((names_of_epoch(shards, epoch) for epoch in range(3)), [])


def test_a_process_that_shares_a_table_gets_other_samples_in_the_next_epoch(tmp_path):
    shards = clip_sets.one_table(tmp_path)
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
        files = clip_sets.samples_in_tar(range(6))
        del files["1.txt"], files["4.txt"]
        clip_sets.write_tar(tmp_path / f"bad/{shard}.tar", files)
    return shards_of(tmp_path / "bad")


@pytest.mark.parametrize("make", [clip_sets.five_tars, clip_sets.one_table, clip_sets.nested_folder, with_bad_ones])
@pytest.mark.parametrize("rank, world", [(0, 1), (1, 2), (3, 4)])
def test_a_stream_that_skips_goes_on_as_the_uninterrupted_one(tmp_path, make, rank, world):
    shards, options = make(tmp_path), {"rank": rank, "world": world, "skip_bad": True}
    options["held_out"] = [source.name for source in islice((source for shard in shards for source in shard), 2)]
    whole = clip_sets.stream_of(shards, **options)
    clips, positions = zip(*((next(whole), whole.position) for _ in range(100)))
    assert len(set(clips)) >= 10 and positions[-1] > 100
    for taken in (1, 2, 7, 30, 61):
        resumed = clip_sets.stream_of(shards, load=lambda source: pytest.fail("loaded what is skipped"), **options)
        resumed.skip_to(positions[taken - 1] // 2)
        resumed.skip_to(positions[taken - 1])
        resumed.load = clip_sets.name_of
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
    shards = [CountedReads(shard) for shard in clip_sets.five_tars(tmp_path)]
    stream = clip_sets.stream_of(shards)
    stream.skip_to(23 * 500 + 11)
    assert (stream.epoch, stream.position) == (500, 23 * 500 + 11)
    assert max(shard.reads for shard in shards) <= 3  # the first epoch, the start of the second, the last
    assert [next(stream) for _ in range(12)] == names_of_epoch(shards, 500)[11:]


def test_a_stream_does_not_go_back(tmp_path):
    stream = clip_sets.stream_of(clip_sets.one_tar(tmp_path))
    stream.skip_to(4)
    with pytest.raises(ValueError, match="at 4 and cannot go back to 3"):
        stream.skip_to(3)


# with clips that can be decoded


def test_clips_come_decoded_once_and_from_the_cache_in_later_epochs(tmp_path, clip_bytes, temporary):
    for shard in range(2):
        files = {
            f"{n}{end}": text for n in range(2) for end, text in ((".mp4", clip_bytes(2 * shard + n)), (".txt", "x"))
        }
        clip_sets.write_tar(tmp_path / f"shards/{shard}.tar", files)
    base = clip_sets.Counting()
    stream = clip_sets.stream_of(shards_of(tmp_path / "shards"), base.loader(tmp_path / "cache"))
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
    clip_sets.write_tar(tmp_path / "shard.tar", {"other.json": '{"caption": "a square"}', "other.mp4": content})
    base = clip_sets.Counting()
    sets = [shards_of(tmp_path / name) for name in ("folder", "table", "shard.tar")]
    clips = [next(clip_sets.stream_of(shards, base.loader(tmp_path / "cache"))) for shards in sets]
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
    return shards_of(clip_sets.write_tar(tmp_path / "mixed.tar", files))


REASONS = {
    "mixed.tar/short.mp4": "too short: 0.38 s are 3 frames at 8 fps; 8 frames (1.00 s) are needed",
    "mixed.tar/noise.mp4": "not a video, or cut off",
    "mixed.tar/silent.mp4": "no caption: put a .txt",
    "mixed.tar/words": "no clip in it; after the first dot come .txt",
}


def test_clips_that_cannot_be_used_are_left_out_and_named_once(tmp_path, clip_bytes, temporary, caplog):
    stream = clip_sets.stream_of(
        mixed_tar(tmp_path, clip_bytes), clip_sets.Counting().loader(tmp_path / "cache"), skip_bad=True
    )
    with caplog.at_level(logging.WARNING, "stillmotion"):
        names = [next(stream).name for _ in range(6)]
    assert set(names) == {"mixed.tar/good0.mp4", "mixed.tar/good1.mp4"}
    assert stream.position > 12 and stream.skipped.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert stream.skipped[name].startswith(reason)
        assert caplog.text.count(f"{name} is left out: {reason}") == 1
    assert not list(temporary.iterdir())


def test_without_skip_bad_the_first_one_is_an_error(tmp_path, clip_bytes):
    stream = clip_sets.stream_of(mixed_tar(tmp_path, clip_bytes), clip_sets.Counting().loader(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"mixed.tar/(short|noise|silent|words)[.mp4]* cannot be used: .*--skip-bad"):
        for _ in range(3):
            next(stream)


def test_a_set_without_a_clip_is_an_error_and_no_endless_loop(tmp_path):
    bad = shards_of(clip_sets.write_tar(tmp_path / "bad.tar", {"a.mp4": b"", "a.txt": "x", "b.mp4": b"x"}))
    with pytest.raises(
        ValueError, match="no clip is left .* 0 are held out, and 2 cannot be used; bad.tar/a.mp4: empty"
    ):
        next(clip_sets.stream_of(bad, clip_sets.Counting().loader(tmp_path / "cache"), skip_bad=True))
    shards = clip_sets.one_tar(tmp_path)
    with pytest.raises(ValueError, match="no clip is left to train on: 23 are held out"):
        next(clip_sets.stream_of(shards, held_out=names_of_epoch(shards)))


def test_an_epoch_without_a_clip_goes_by_where_the_set_has_one(tmp_path):
    files = clip_sets.samples_in_tar(range(3))
    del files["0.txt"], files["1.txt"]
    shards = shards_of(clip_sets.write_tar(tmp_path / "bad.tar", files))
    for rank in range(4):  # more processes than samples
        stream = clip_sets.stream_of(shards, rank=rank, world=4, skip_bad=True)
        assert [next(stream) for _ in range(3)] == ["bad.tar/2.mp4"] * 3


def test_clips_that_are_held_out_are_the_first_that_can_be_used_for_every_process(tmp_path, clip_bytes):
    shards, load = mixed_tar(tmp_path, clip_bytes), clip_sets.Counting().loader(tmp_path / "cache")
    (held_out,) = first_usable(shards, 1, load, skip_bad=True)
    assert held_out.name == "mixed.tar/good0.mp4" and held_out.latents.shape == (8, 4, 2, 4)
    for rank in range(2):
        stream = clip_sets.stream_of(shards, load, rank=rank, world=2, held_out=[held_out.name], skip_bad=True)
        assert [next(stream).name for _ in range(3)] == ["mixed.tar/good1.mp4"] * 3
    with pytest.raises(ValueError, match="short.mp4 cannot be used"):
        first_usable(shards, 1, load)
    every = first_usable(shards, 3, load, skip_bad=True)
    assert [clip.name for clip in every] == ["mixed.tar/good0.mp4", "mixed.tar/good1.mp4"]


def test_a_peek_reports_the_first_samples(tmp_path, clip_bytes, temporary):
    options = ClipFormat(8, 8, clip_sets.SIZE)
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
    stream = ClipStream(clip_sets.one_table(tmp_path, suffix, rows=20_000), clip_sets.name_of, seed=0, buffer=100)
    stream.skip_to(18_500)  # not traced, which takes its time
    tracemalloc.start()
    stream.skip_to(20_300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.epoch == 1 and peak < 300_000


@pytest.mark.parametrize("change", ["shrinks", "is gone", "becomes a pipe", "becomes a folder", "is cut"])
def test_a_clip_that_changes_after_it_was_looked_at_is_named_or_left_out(tmp_path, clip_bytes, change, caplog):
    (tmp_path / "set").mkdir()
    for number in range(3):
        (tmp_path / f"set/{number}.mp4").write_bytes(clip_bytes(number))
    sources, clip = find_clips(tmp_path / "set", "x"), tmp_path / "set/1.mp4"
    if change == "shrinks":
        clip.write_bytes(clip_bytes(9, frames=3))
    elif change == "is cut":
        clip.write_bytes(clip_bytes(1)[:-200])
    else:
        clip.unlink()
        {"becomes a pipe": lambda: os.mkfifo(clip), "becomes a folder": clip.mkdir}.get(change, bool)()
    load = clip_sets.Counting().loader(tmp_path / "cache")
    with pytest.raises(ValueError, match="1.mp4 cannot be used: "):
        every_usable(sources, load)
    assert [clip.name for clip in every_usable(sources, load, skip_bad=True)] == ["0.mp4", "2.mp4"]
    assert "1 clips are left out: 1.mp4: " in caplog.text
