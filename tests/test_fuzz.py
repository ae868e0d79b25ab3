"""Some hundred damaged inputs of every kind, by fixed seeds: each is read, or refused in a sentence.

`--fuzz 20` tries twenty times as many.
"""

import io
import json
import shutil

import pytest
import safetensors.torch
import torch
from fuzzing import as_json, check, damaged, damaged_bytes, damaged_value
from motion_files import good_file
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.formats.animatediff import to_animatediff
from stillmotion.networks.formats.files import read_any_motion_file
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.formats.motion_adapter import to_motion_adapter
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import MotionInfo

tiny_run = pytest.importorskip("tiny_run")
SMALL = MotionInfo(InflationConfig(Temporal()), sd15_like([32, 64], [1, 1]))


@pytest.fixture
def times(request):
    return request.config.getoption("--fuzz")


@pytest.fixture(scope="module")
def tensors():
    return Inflation(SMALL.config, SMALL.structure).state_dict()


def written(path, data):
    path.write_bytes(data)
    return path


def test_motion_files(tmp_path, times):
    good, path = good_file(tmp_path).read_bytes(), tmp_path / "a.safetensors"
    ended, refused = check(300 * times, read_any_motion_file, lambda r: written(path, damaged(good, r)), [path])
    assert ended < refused


def test_modules_of_animatediff(tmp_path, times, tensors):
    good, path = safetensors.torch.save(to_animatediff(SMALL, tensors)), tmp_path / "a.safetensors"
    ended, refused = check(200 * times, read_any_motion_file, lambda r: written(path, damaged(good, r)), [path])
    assert ended and refused


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_modules(tmp_path, times, tensors, zipped):
    from stillmotion.trainer.base.motion_module import read_motion_module

    file, path = io.BytesIO(), tmp_path / "a.ckpt"
    torch.save(to_animatediff(SMALL, tensors), file, _use_new_zipfile_serialization=zipped)
    good = file.getvalue()
    start = good[:4000]  # where the program that makes the tensors is

    def make(random):
        data = good if random.random() < 0.3 else None
        return written(path, damaged_bytes(data, random) if data else damaged_bytes(start, random) + good[4000:])

    read_motion_module(written(path, good))
    _, refused = check(100 * times, read_motion_module, make, [path])
    assert refused


def test_adapters(tmp_path, times, tensors):
    from stillmotion.trainer.base.motion_module import read_motion_module

    config, theirs = to_motion_adapter(SMALL, tensors)
    data = safetensors.torch.save(theirs)

    def make(random):
        broken = damaged_value(config, random) if random.random() < 0.7 else config
        written(tmp_path / "config.json", as_json(broken))
        weights = damaged(data, random) if broken is config else data
        written(tmp_path / "diffusion_pytorch_model.safetensors", weights)
        return tmp_path

    ended, refused = check(100 * times, read_motion_module, make, [tmp_path])
    assert ended and refused


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    tiny_run.write_base(folder / "base")
    return folder / "base"


def test_base_folders(tmp_path, times, base):
    from stillmotion.trainer.base.load import load_base

    files = sorted(file.relative_to(base) for file in base.rglob("*") if file.is_file())
    small = [file for file in files if (base / file).stat().st_size < 10**6]

    def make(random):
        folder, hit = tmp_path / "base", random.choice(small if random.random() < 0.8 else files)
        shutil.rmtree(folder, ignore_errors=True)
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(base / file)
        (folder / hit).unlink()
        if random.random() < 0.2:
            return folder
        data = (base / hit).read_bytes()
        is_config = hit.suffix == ".json" and random.random() < 0.8
        changed = as_json(damaged_value(json.loads(data), random)) if is_config else damaged(data, random)
        written(folder / hit, changed)
        return folder

    ended, refused = check(16 * times, load_base, make, [tmp_path / "base"])
    assert ended and refused


def test_checkpoints_in_one_file(tmp_path, times):
    """The U-Net of a checkpoint, which is judged first; one undamaged is told what else it lacks."""
    from stillmotion.trainer.base.ldm_checkpoint import unet_to_ldm
    from stillmotion.trainer.base.load import load_base

    tensors = {f"model.diffusion_model.{n}": t for n, t in unet_to_ldm(tiny_run.tiny_unet(context=768)).items()}
    path, good = tmp_path / "a.safetensors", safetensors.torch.save(tensors)
    with pytest.raises(ValueError, match="its CLIP text encoder lacks"):  # so far an undamaged one comes
        load_base(written(path, good))
    _, refused = check(40 * times, load_base, lambda r: written(path, damaged(good, r)), [path])
    assert refused


TOML = """videos = "clips"
base = "base.safetensors"
size = "64x48"
steps = 100
learning_rate = 1e-3
ema = "none"
queries = "lora"
resume = false
"""


def test_options_in_a_file(tmp_path, times):
    from stillmotion.trainer.config import read_options
    from stillmotion.trainer.options import FewShotOptions

    path = tmp_path / "a.toml"
    read_options(FewShotOptions, ["--config", str(written(path, TOML.encode()))], "trainer")
    read = lambda _: read_options(FewShotOptions, ["--config", str(path)], "trainer")  # noqa: E731
    ended, refused = check(200 * times, read, lambda r: written(path, damaged_bytes(TOML.encode(), r)))
    assert ended and refused


WORDS = ["nan", "inf", "-1", "0", "1e400", "9" * 400, "", " ", "true", "none", "\x1b[2J", "64x", "x", "0x0", "1_0", "٣"]


def test_values_of_options(times):
    from stillmotion.trainer.config import flag_of, read_options
    from stillmotion.trainer.options import ConvertOptions, FewShotOptions, InflateOptions, ToyOptions

    def make(random):
        kind = random.choice((FewShotOptions, InflateOptions, ConvertOptions, ToyOptions))
        names = random.sample(sorted(kind.model_fields), 3)
        return kind, [word for name in names for word in (flag_of(name), random.choice(WORDS))]

    _, refused = check(300 * times, lambda given: read_options(*given, "trainer"), make)
    assert refused


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_clips(tmp_path, times, suffix):
    from stillmotion.trainer.clips.find import ClipFormat, find_clips
    from stillmotion.trainer.clips.inspect import inspect_clips
    from stillmotion.trainer.show import pictures

    path = tmp_path / f"a{suffix}"
    if suffix == ".mp4":
        pictures.write_mp4(torch.randint(0, 255, (8, 32, 48, 3), dtype=torch.uint8).numpy(), path, 8)
    else:
        tiny_run.write_clips(tmp_path / "drawn", 1)
        path.write_bytes((tmp_path / "drawn/0.gif").read_bytes())
        shutil.rmtree(tmp_path / "drawn")
    (tmp_path / "a.txt").write_text("a square")
    good, problems = path.read_bytes(), []

    def read(folder):
        problems.extend(found.problem for found in inspect_clips(find_clips(folder), ClipFormat(8, 4, (32, 32))))

    read(tmp_path)
    assert problems == [None]
    check(40 * times, read, lambda r: written(path, damaged_bytes(good, r)).parent)
    assert any(problems) and all(problem is None or str(problem).isprintable() for problem in problems)


@pytest.mark.parametrize("name", ["clips.csv", "metadata.jsonl"])
def test_tables(tmp_path, times, name):
    from stillmotion.trainer.clips.shards import shards_of

    rows = {
        "clips.csv": b"file_name,text\na.mp4,a square\nb.mp4,another\n",
        "metadata.jsonl": b'{"file_name": "a.mp4", "text": "a square"}\n{"file_name": "b.mp4", "text": "another"}\n',
    }
    for clip in "ab":
        (tmp_path / f"{clip}.mp4").write_bytes(b"x")
    path = tmp_path / name

    def read(given):
        return [sample for shard in shards_of(given) for sample in shard]

    assert [sample.caption for sample in read(written(path, rows[name]))] == ["a square", "another"]
    ended, refused = check(100 * times, read, lambda r: written(path, damaged_bytes(rows[name], r)))
    assert ended and (refused or name == "metadata.jsonl")  # whose rows are judged one by one
