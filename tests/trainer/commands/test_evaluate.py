"""`evaluate` reads any set, says what its clips are, compares sets, and keeps what it measured."""

import csv
import json
import signal

import numpy as np
import pytest
import tiny_clip
import tiny_i3d
import tiny_run as tiny
import torch
from PIL import Image
from stillmotion.trainer.base import comfyui
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.cache import to_network
from stillmotion.trainer.clips.find import find_clips
from stillmotion.trainer.measures import clips as measuring
from stillmotion.trainer.measures import networks as seeing
from stillmotion.trainer.measures.clips import measure_set
from stillmotion.trainer.measures.networks import too_few
from stillmotion.trainer.measures.pictures import small
from stillmotion.trainer.measures.report import row_of
from stillmotion.trainer.measures.statistics import frechet_distance
from stillmotion.trainer.toy.faults import FAULTS, moving_clip
from torch import Generator
from torch.nn import functional


def write(frames, folder):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips of a few kinds, without captions, and the numbers of all, cached."""
    folder = tmp_path_factory.mktemp("sets")
    for number in range(2):
        generator = Generator().manual_seed(number)
        clip = moving_clip(generator, frames=8)[:, ::2, ::2]
        write(clip, folder / "moving" / f"clip {number}")
        for kind in ("frozen", "flickering"):
            write(FAULTS[kind](clip, generator), folder / kind / f"clip {number}")
    return folder


def evaluated(folder, tmp_path, *kinds, more=()):
    paths = [str(folder / kind) for kind in kinds]
    where = ["--output", str(tmp_path / "out"), "--cache", str(folder / "cache")]
    return main(["evaluate", "--videos", *paths, *where, *more])


def report_in(tmp_path):
    return json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))


def test_a_frozen_set_has_no_smoothness_and_a_flickering_one_differs(folder, tmp_path, capsys):
    assert evaluated(folder, tmp_path, "moving", "frozen", "flickering") == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "clip 0  8       8" in said and said.count("hardly moves") == 2 and said.count("sound") == 2
    assert "frozen: still: 2 of 2 clips" in said and "frozen: few of its clips move of themselves" in said
    assert "flickering and moving: compared clip by clip, the 2 that have one name in both" in said
    report = report_in(tmp_path)
    moving, frozen = (report["sets"][name] for name in ("moving", "frozen"))
    assert (moving["moving"], frozen["moving"]) == (2, 0)
    assert frozen["means"]["motion"]["mean"] == 0 and frozen["means"]["warping_error"]["mean"] is None
    assert lines["warping error, 1e-4 *"].split().count("-") == 2, "neither a mean nor a difference of the frozen set"
    differs = report["differences"]["flickering - moving"]["flicker"]
    assert differs["seen"] and differs["paired"] and 12 < differs["mean"] < 15


def test_every_number_is_in_the_csv_and_pictures_are_written(folder, tmp_path, capsys):
    assert evaluated(folder, tmp_path, "moving", "frozen") == 0
    rows = list(csv.DictReader((tmp_path / "out/clips.csv").open(encoding="utf-8")))
    assert [(row["set"], row["clip"]) for row in rows] == [
        (s, f"clip {n}") for s in ("moving", "frozen") for n in (0, 1)
    ]
    clips = report_in(tmp_path)["sets"]["moving"]["clips"]
    for name in ("motion", "warping_error", "flicker", "loop"):
        assert float(rows[0][name]) == clips[0][name]
    assert rows[2]["seam"] == "" and rows[2]["what it is"] == "hardly moves"
    for name, height in (("motion.png", 640), ("clips_1.png", 2 * 132), ("clips_2.png", 2 * 132)):
        assert Image.open(tmp_path / "out" / name).height == height
    assert str(tmp_path / "out" / "clips_2.png") in capsys.readouterr().out


def test_a_set_and_itself_differ_by_nothing_that_is_seen(folder, tmp_path, capsys):
    (tmp_path / "again").symlink_to(folder / "moving", target_is_directory=True)
    assert evaluated(folder, tmp_path, "moving", more=["--reference", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "no difference seen" in said and not any(
        d["seen"] for d in only(report_in(tmp_path)["differences"]).values()
    )


def test_a_set_that_is_named_twice_is_refused(folder, tmp_path, capsys):
    assert evaluated(folder, tmp_path, "moving", "moving") == 2
    assert "moving is named twice" in capsys.readouterr().err


def only(values):
    (value,) = values.values()
    return value


def test_what_was_measured_is_kept_by_content_and_what_is_damaged_made_again(folder, tmp_path, monkeypatch, caplog):
    sources, count = find_clips(folder / "moving", ""), []
    real = measuring.measured_now
    monkeypatch.setattr(measuring, "measured_now", lambda *args: count.append(1) or real(*args))
    first = measure_set(sources, None, tmp_path / "cache", 1)
    again = measure_set(sources, None, tmp_path / "cache", 1)
    assert str(again) == str(first) and len(count) == 2  # as text: nan is not equal to itself
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"rate": 8}')
    assert measure_set(sources, None, tmp_path / "cache", 1)[0].numbers.motion == first[0].numbers.motion
    assert len(count) == 4 and "is damaged and is made again" in caplog.text
    measure_set(sources, 4.0, tmp_path / "cache", 1)
    assert len(count) == 6, "other frames are other numbers"


def test_networks_see_large_frames_a_few_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(seeing, "PIXELS", 1)
    (source, _) = find_clips(folder / "moving", "")
    alone = list(seeing.chunks_of(source, None))
    monkeypatch.setattr(seeing, "PIXELS", 3 * alone[0][0, ..., 0].size)
    assert [len(chunk) for chunk in alone] == [1] * 8
    chunks = list(seeing.chunks_of(source, None))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert np.array_equal(np.concatenate(chunks), np.concatenate(alone))


def test_rows_are_drawn_of_frames_no_larger_than_they_show(folder):
    (source, _) = find_clips(folder / "moving", "")
    as_it_is = next(iter(measuring.ClipFrames(source, None)))
    assert np.array_equal(small(as_it_is), as_it_is)
    assert small(np.zeros((400, 3000, 3), np.uint8)).shape == (68, 512, 3)


def test_a_worker_leaves_ctrl_c_to_the_process_that_started_it():
    before = signal.getsignal(signal.SIGINT)
    try:
        measuring.become_worker()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_by_itself_each_frame_is_looked_at_and_with_fps_those_on_screen(tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 255, (10, 32, 48, 3), np.uint8)
    write_video(tmp_path / "a.mp4", [k / 20 for k in range(10)], frames, rate=20)
    (whole,), (some,) = (measure_set(find_clips(tmp_path, ""), fps, tmp_path / "cache", 1) for fps in (None, 10.0))
    assert (whole.numbers.frames, whole.fps) == (10, pytest.approx(20)) and (some.numbers.frames, some.fps) == (5, 10)
    assert whole.size == (48, 32)


def test_a_clip_that_is_damaged_in_the_middle_is_measured_up_to_there_and_says_so(tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "clip.avi", [k / 25 for k in range(50)], frames, codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    for _ in ("measured", "from the cache"):
        (clip,) = measure_set(find_clips(path, ""), None, tmp_path / "cache", 1)
        said = row_of(clip, {}).remarks["damaged"]
        assert said.startswith(f"damaged or cut off after {clip.numbers.frames} frames") and clip.numbers.frames < 30


def test_clips_that_cannot_be_measured_are_named_and_may_be_skipped(folder, tmp_path, capsys):
    (tmp_path / "moving").mkdir()
    (tmp_path / "moving" / "bad.mp4").write_bytes(b"not a video")
    (tmp_path / "moving" / "good").symlink_to(folder / "moving/clip 0", target_is_directory=True)
    assert evaluated(tmp_path, tmp_path, "moving") == 2
    error = capsys.readouterr().err
    assert "1 of 2 clips cannot be measured; --skip-bad leaves them out: bad.mp4: not a video" in error
    assert evaluated(tmp_path, tmp_path, "moving", more=["--skip-bad"]) == 0
    (tmp_path / "moving" / "good").unlink()
    assert evaluated(tmp_path, tmp_path, "moving", more=["--skip-bad"]) == 2
    assert "None of the 1 clips can be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--anyway"], "it needs --reference, and --features, --clip or --fvd"),
        (["--fps", "0"], "--fps"),
        (["--fvd", "i3d.pt"], "--fvd is a distance from a set: it needs --reference"),
        ([], "--videos: expected"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, tmp_path, capsys, more, said):
    assert evaluated(folder, tmp_path, *["moving"] * bool(more), more=more) == 2
    assert said in capsys.readouterr().err


def test_a_frechet_distance_needs_256_clips():
    assert too_few({"a": 256, "b": 300}) == ""
    assert "fewer than 256 clips (b has 10): one half of such a set" in too_few({"a": 256, "b": 10})


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip.write_clip(tmp_path_factory.mktemp("clip"))


def test_clips_numbers_stand_beside_and_a_distance_of_few_clips_is_refused_with_its_reason(
    folder, tmp_path, clip_folder, capsys
):
    more = ["--reference", str(folder / "moving"), "--clip", str(clip_folder), "--caption", "a ball"]
    assert evaluated(folder, tmp_path, "frozen", "flickering", more=more) == 0
    said, report = capsys.readouterr().out, report_in(tmp_path)
    assert "no Fréchet distance of fewer than 256 clips (moving has 2, frozen has 2" in said and report["frechet"] == {}
    frozen, moving = (report["sets"][name] for name in ("frozen", "moving"))
    assert all(clip["consistency"] == pytest.approx(1, abs=1e-5) for clip in frozen["clips"])
    assert frozen["means"]["consistency"]["mean"] is None, "a frozen set has no consistency to speak of"
    assert moving["clips"][0]["consistency"] < 1 and -1 <= moving["clips"][0]["clipsim"] <= 1

    assert evaluated(folder, tmp_path, "frozen", "flickering", more=[*more, "--anyway"]) == 0
    assert "frozen: Fréchet distance" in capsys.readouterr().out
    far = report_in(tmp_path)["frechet"]
    assert set(far) == {"frozen", "flickering"} and all(set(each) == {"look", "change"} for each in far.values())
    assert far["frozen"]["change"] > 0


def test_fvd_is_of_what_i3d_sees_in_sixteen_frames(folder, tmp_path, capsys):
    for number in range(2):
        clip = moving_clip(Generator().manual_seed(number), frames=17)[:, ::4, ::4]
        for kind, frames in (("moving", clip), ("brighter", clip // 2 + 127)):
            write(frames, tmp_path / kind / f"clip {number}")
    network = tiny_i3d.write(tmp_path / "i3d_torchscript.pt")
    more = ["--reference", str(tmp_path / "moving"), "--fvd", str(tmp_path / "i3d_torchscript.pt")]
    assert evaluated(tmp_path, tmp_path, "brighter", more=more) == 0
    assert "no Fréchet distance of fewer than 256 clips" in capsys.readouterr().out
    assert evaluated(tmp_path, tmp_path, "brighter", more=[*more, "--anyway"]) == 0
    assert "of what I3D sees (FVD)" in capsys.readouterr().out

    def seen(kind):
        files = [sorted((tmp_path / kind / f"clip {number}").iterdir())[:16] for number in range(2)]
        clips = torch.stack([to_network(np.stack([np.array(Image.open(file)) for file in clip])) for clip in files])
        large = functional.interpolate(clips.flatten(0, 1), (224, 224), mode="bilinear").unflatten(0, (2, 16))
        return network(large.transpose(1, 2), rescale=False, resize=False, return_features=True).numpy()

    (far,) = report_in(tmp_path)["frechet"].values()
    assert far == {"fvd": pytest.approx(frechet_distance(seen("brighter"), seen("moving")), rel=1e-4)}
    assert far["fvd"] > 0
    assert evaluated(folder, tmp_path, "moving", more=[*more, "--anyway"]) == 2
    assert "clip 0 has 8 frames; FVD is of clips of 16 or more" in capsys.readouterr().err


def test_without_a_prompt_a_clip_has_no_clipsim_and_all_else(folder, tmp_path, clip_folder):
    assert evaluated(folder, tmp_path, "moving", more=["--clip", str(clip_folder)]) == 0
    (first, _) = report_in(tmp_path)["sets"]["moving"]["clips"]
    assert first["clipsim"] is None and first["consistency"] > 0 and first["appearance_factor"] >= 0


@pytest.mark.parametrize("name", ["auto", "mine", "a path"])
def test_the_motion_factor_is_of_the_latents_of_a_base(folder, tmp_path, monkeypatch, name):
    host = tmp_path / "ComfyUI"
    base = host / "models/diffusers/mine"
    (host / "custom_nodes").mkdir(parents=True)
    tiny.write_base(base)
    (base / "model_index.json").write_text("{}")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(comfyui, "roots", list)
    asked = str(base) if name == "a path" else name
    assert evaluated(folder, tmp_path, "moving", "frozen", more=["--base", asked]) == 0
    sets = report_in(tmp_path)["sets"]
    moving, frozen = (sets[name]["clips"][0]["motion_factor"] for name in ("moving", "frozen"))
    assert frozen == 0 and moving > 0


def test_several_processes_measure_what_one_does(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "PER_PROCESS", 1)
    sources = find_clips(folder / "moving", "")
    alone, shared = (measure_set(sources, None, tmp_path / str(count), count) for count in (1, 2))
    assert str(shared) == str(alone) and len(list((tmp_path / "2").iterdir())) == 2
