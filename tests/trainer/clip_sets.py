"""Sets of clips for tests: tar files, tables and folders, of nothing or of drawn clips."""

import io
import json
import tarfile

import torch
import torch.nn.functional as F
from stillmotion.trainer.clips.cache import caption_embedding, clip_latents
from stillmotion.trainer.clips.decoding import ClipError
from stillmotion.trainer.clips.shards import shards_of
from stillmotion.trainer.clips.stream import ClipStream, Loader

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


def sources_in(path, caption=None):
    return {source.name: source.problem or source.caption for shard in shards_of(path, caption) for source in shard}


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
        return Loader(
            frames,
            8,
            lambda source: clip_latents(source, 8, SIZE, self.vae, cache, self.encode_frames),
            lambda caption: caption_embedding(caption, self, cache, self.encode_captions),
        )
