"""Sets of pictures: what is one, and what are its words."""

import tarfile

import numpy as np
import pytest
from PIL import Image
from stillmotion.trainer.clips.pictures import picture_latents, picture_shards
from stillmotion.trainer.clips.shards import opened, set_hash
from stillmotion.trainer.clips.tars import Member


def write(path, value=100, size=(64, 48), caption=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def samples(path, caption=None):
    return [source for shard in picture_shards(path, caption) for source in shard]


def test_every_picture_of_a_folder_is_a_sample_also_where_they_are_numbered(tmp_path):
    """A folder of numbered pictures is one clip elsewhere."""
    for number in (1, 2, 10):
        write(tmp_path / f"set/frame{number}.png", caption=f"picture {number}")
    write(tmp_path / "set/more/blue sky.jpg", caption="a sky")
    (tmp_path / "set/desktop.ini").write_text("x")
    found = samples(tmp_path / "set")
    assert sorted(source.caption for source in found) == ["a sky", "picture 1", "picture 10", "picture 2"]
    assert not any(source.problem for source in found)


def test_a_single_picture_and_one_caption_for_all(tmp_path):
    write(tmp_path / "a.png", caption="one")
    write(tmp_path / "b.png")
    assert [(s.name, s.caption) for s in samples(tmp_path / "a.png")] == [("a.png", "one")]
    assert {s.caption for s in samples(tmp_path, "all")} == {"all"}
    assert [s.problem is None for s in samples(tmp_path)] == [True, False]


def test_tables_and_tar_files_name_pictures_too(tmp_path):
    write(tmp_path / "in/x.png", caption="packed")
    (tmp_path / "table.csv").write_text('file_name,text\nin/x.png,"in a table"\n')
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for file in sorted((tmp_path / "in").iterdir()):
            tar.add(file, file.name)
    assert [s.caption for s in samples(tmp_path / "table.csv")] == ["in a table"]
    (member,) = samples(tmp_path / "set.tar")
    assert isinstance(member, Member) and member.caption == "packed" and member.suffix == ".png"


@pytest.mark.parametrize("size", [(64, 48), (32, 32)])
def test_a_picture_is_scaled_to_cover_the_size_and_cached_by_content(tmp_path, size):
    write(tmp_path / "a.png", 200, (80, 60), "one")
    calls = []

    def encode(vae, frames):
        calls.append(tuple(frames.shape))
        return frames[:, :1, ::8, ::8].repeat(1, 4, 1, 1)

    import torch

    vae = torch.nn.Linear(1, 1)
    for _ in range(2):
        with opened(samples(tmp_path)[0]) as source:
            latents = picture_latents(source, size, vae, tmp_path / "cache", encode, "weights")
    assert calls == [(1, 3, calls[0][2], calls[0][3])] and calls[0][3] >= size[0] and calls[0][2] >= size[1]
    assert latents.shape[:2] == (1, 4) and latents.mean().item() == pytest.approx(200 / 127.5 - 1, abs=0.01)


def test_a_folder_without_pictures_and_another_set_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        picture_shards(tmp_path / "empty")
    write(tmp_path / "set/a.png", caption="a")
    before = set_hash(picture_shards(tmp_path / "set"))
    write(tmp_path / "set/b.png", caption="b")
    assert set_hash(picture_shards(tmp_path / "set")) != before
