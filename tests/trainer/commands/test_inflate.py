"""The whole `inflate` command on a base and clips of the smallest size, and what its options make of an inflation."""

import json
import signal
import tarfile
import time

import own_process
import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file
from stillmotion.networks.config import InflationConfig, Temporal
from stillmotion.networks.formats.modules import sd15_like
from stillmotion.networks.motion_file import read_motion_file
from stillmotion.networks.presets import PRESETS
from stillmotion.samplers.schedules import alphas_cumprod
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.cli import main
from stillmotion.trainer.losses import denoising as losses
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run import sample, session, training_set
from stillmotion.trainer.run.checkpoints import read_state, same
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from stillmotion.trainer.run.training_set import Encoder

SD15 = sd15_like([320, 640, 1280, 1280], [2, 2, 2, 2])
NUMBERS = "--size 64x48 --frames 4 --warm-up 1 --learning-rate 1e-3 --ema 0.9 --preview-every none --held-out-every 9"
HARIVO = "--preset lumiere-harivo --regularisation 0.1 --trs 0.1 --contrastive 0.1 --ramp 4 --queue 32"
LONG = f"{HARIVO} --batch-size 6 --steps 5 --held-out 1 --held-out-every 5"  # 12 frames a step fill the queue in three


@pytest.fixture(scope="module")
def place(place):
    """A base, and the same three clips as a folder, a table, and a tar file."""
    rows = [f'clips/{n}.gif,"a square moves, number {n}"\n' for n in range(3)]
    (place / "clips.csv").write_text("file_name,text\n" + "".join(rows))
    with tarfile.open(place / "clips.tar", "w") as tar:
        for file in sorted((place / "clips").iterdir()):
            tar.add(file, file.name)
    return place


def words(place, output, *more):
    return tiny.words(place, "inflate", output, *NUMBERS.split(), *more)


def run(place, output, *more):
    """Runs the command in this process, on the CPU, and gives its exit code."""
    AcceleratorState._reset_state(True)
    return main(words(place, output, *more))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Without the estimate, which takes longer than so small a run; that of `whole` has it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(shared_path, "report_estimate", lambda *_: None)


@pytest.fixture(scope="module")
def whole(place):
    """The folder of one finished run with every loss, whose queue was full for two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        more = "--save-every 2 --preview-every 5 --preview-steps 2"
        assert run(place, "whole", *LONG.split(), *more.split()) == 0
    return place / "whole"


def test_the_motion_file_opens_for_the_base_and_says_how_it_was_made(place, whole):
    structure = structure_of(tiny.tiny_unet(context=768))
    info, tensors = read_motion_file(whole / "whole.safetensors", fits=structure)
    assert info.config == PRESETS["lumiere-harivo"](structure, 4)
    assert (info.frames, info.fps, info.width, info.height, info.schedule) == (4, 8.0, 64, 48, "scaled_linear")
    assert info.options["contrastive"] == 0.1 and str(place) not in json.dumps(info.options)
    assert info.captions == ("a square moves, number 0",), "of the clips that were looked at, not of millions"
    fresh = fresh_inflation(info.config, structure, 0).state_dict()
    assert all(not torch.equal(tensors[name], fresh[name]) for name in fresh)
    assert "whole.safetensors" in (whole / "whole_workflow.json").read_text()


def test_a_run_leaves_options_log_previews_and_saves(whole):
    lines = read_log(whole / "log.jsonl")
    assert (lines[0]["clips"], lines[0]["held_out"]) == (["clips"], ["0.gif"])
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    for line in steps:
        rising = 0.1 * min(1, line["step"] / 4)
        expected = line["loss_simple"] + 0.1 * line["loss_regularisation"]
        expected += rising * (line["loss_trs"] + line["loss_contrastive"])
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    assert [line["step"] for line in lines if "held_out_loss" in line] == [0, 5]
    assert set(lines[-1]["moved"]) == {"factorised", "stacked", "resampling", "mapping", "tokens"}
    assert "steps = 5" in (whole / "options.toml").read_text() and (whole / "clips.png").exists()
    assert Image.open(whole / "previews/step-000005.webp").n_frames == 4
    assert [path.name for path in saved_states(whole / "saves")] == [f"state-00000{step}.pt" for step in (2, 4, 5)]


def test_killed_and_resumed_gives_the_same_motion_file(place, whole):
    """SIGKILL as soon as the fourth step is in the log: weights, their mean, queue, head and stream go on."""
    arguments = words(place, "killed", *LONG.split(), "--save-every", "1")
    process = own_process.start(own_process.command, arguments)
    while process.is_alive() and not any(line.get("step") == 4 for line in read_log(place / "killed/log.jsonl")):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (place / "killed/killed.safetensors").exists()
    state = read_state(saved_states(place / "killed/saves")[-1])
    clips = 6 * state["step"]
    assert state["positions"][0][0] in (3 * clips // 2 - 1, 3 * clips // 2), "one of three is held out, and passed over"
    assert state["objective"]["contrastive"]["queue"]["entries"].shape == (32, 64)
    assert main([*arguments, "--resume"]) == 0
    assert same(load_file(place / "killed/killed.safetensors"), load_file(whole / "whole.safetensors"))
    ours, theirs = (read_state(saved_states(place / name / "saves")[-1]) for name in ("killed", "whole"))
    for part in ("weights", "optimizer", "ema", "objective", "positions"):
        assert same(ours[part], theirs[part]), part


def test_the_same_clips_give_the_same_file_however_they_lie_there(place):
    more = "--preset animatediff --steps 2"
    for name in ("clips", "clips.csv", "clips.tar"):
        assert run(place, f"of-{name}", *more.split(), "--videos", str(place / name)) == 0
    files = [load_file(place / f"of-{name}/of-{name}.safetensors") for name in ("clips", "clips.csv", "clips.tar")]
    assert same(files[0], files[1]) and same(files[0], files[2])
    assert not same(files[0], fresh_inflation(InflationConfig(Temporal()), structure_of(tiny.tiny_unet(768)), 0))


@pytest.mark.parametrize(
    "change, said",
    [
        (("--caption", "other"), "--videos is clips with the hash"),
        (("--schedule", "linear"), "--schedule is linear, but"),
        (("--trs", "0.2"), "--trs is 0.2, but"),
    ],
)
def test_resuming_with_a_change_that_matters_names_the_option(place, whole, capsys, change, said):
    assert run(place, "whole", *LONG.split(), "--resume", *change) == 2
    assert said in capsys.readouterr().err


def test_half_precision_has_every_loss(place):
    assert run(place, "half", *HARIVO.split(), "--steps", "2", "--precision", "bf16") == 0
    steps = [line for line in read_log(place / "half/log.jsonl") if "loss" in line]
    assert len(steps) == 2 and all(isinstance(value, float) for line in steps for value in list(line.values())[1:])
    assert load_file(place / "half/half.safetensors").popitem()[1].dtype == torch.float32


def test_another_noise_schedule_is_used_by_losses_and_previews_and_written_into_the_file(place, monkeypatch):
    seen = {"losses": set(), "previews": set()}

    def watched(function, where):
        return lambda schedule="scaled_linear", *others: seen[where].add(schedule) or function(schedule, *others)

    monkeypatch.setattr(losses, "alphas_cumprod", watched(losses.alphas_cumprod, "losses"))
    monkeypatch.setattr(sample, "ddim", watched(sample.ddim, "previews"))
    more = "--schedule linear --weighting velocity --steps 1 --preview-every 1 --preview-steps 1"
    assert run(place, "linear", *more.split()) == 0
    assert seen == {"losses": {"linear"}, "previews": {"linear"}}
    assert read_motion_file(place / "linear/linear.safetensors")[0].schedule == "linear"
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear").alphas_cumprod
    assert torch.equal(alphas_cumprod("linear"), theirs)


def test_a_warm_start_is_where_training_begins(place, whole):
    file = whole / "whole.safetensors"
    more = "--preset lumiere --steps 1 --learning-rate 1e-9 --init"
    assert run(place, "warm", *more.split(), str(file)) == 0
    start, end = load_file(file), load_file(place / "warm/warm.safetensors")
    assert set(start) - set(end) == {name for name in start if "tokens" in name or "mapping" in name}
    assert all(torch.allclose(tensor, start[name], atol=1e-7) for name, tensor in end.items())
    (export,) = [line for line in read_log(place / "warm/log.jsonl") if line.get("event") == "export"]
    assert max(export["delta_rms"].values()) < 1e-7, "how far it moved from there, not from new weights"


def test_two_frames_must_be_left_in_the_middle_for_the_contrastive_loss(place, capsys):
    assert run(place, "none", "--contrastive", "0.1", "--frames", "2", "--steps", "1") == 2
    assert "compares two frames in the middle of the U-Net, where 2 frames have become one" in capsys.readouterr().err


def test_blocks_that_would_never_learn_are_refused_before_anything_is_encoded(place, capsys, monkeypatch):
    monkeypatch.setattr(Encoder, "latents_of", None)
    assert run(place, "none", "--preset", "higen", "--halve", "0", "--frames", "2", "--steps", "1") == 2
    said = "--preset higen learns from neighbouring frames at every level, and at level 1 the 2 have become one"
    assert said in capsys.readouterr().err


@pytest.fixture
def with_a_bad_one(place, tmp_path):
    """The clips, and one that is no video."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for file in (place / "clips").iterdir():
        (clips / file.name).write_bytes(file.read_bytes())
    (clips / "1.gif").write_bytes(b"no video")
    return clips


def test_a_set_without_a_clip_is_refused(place, tmp_path, capsys):
    assert run(place, "none", "--videos", str(tmp_path), "--steps", "1") == 2
    assert "holds no clips" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert run(place, "none", "--videos", str(tmp_path / "empty.jsonl"), "--steps", "1", "--skip-bad") == 2
    assert "0 are held out, and 1 cannot be used; empty.jsonl: no row in it" in capsys.readouterr().err


def test_more_clips_cannot_be_held_out_than_there_are(place, capsys):
    assert run(place, "none", "--held-out", "4", "--steps", "1") == 2
    assert "--held-out is 4, but only 3 clips can be used" in capsys.readouterr().err
    assert run(place, "all", "--held-out", "3", "--steps", "1") == 2
    assert "no clip is left to train on: 3 are held out" in capsys.readouterr().err


def test_a_bad_clip_among_the_first_stops_the_run_before_it_begins(place, with_a_bad_one, capsys, monkeypatch):
    monkeypatch.setattr(session, "load_base", None)
    assert run(place, "none", "--videos", str(with_a_bad_one), "--steps", "1") == 2
    assert "1 of 3 clips cannot be used" in (said := capsys.readouterr().err) and "1.gif" in said
    assert not (place / "none").exists()


def test_a_bad_clip_further_on_stops_the_run_or_is_left_out(place, with_a_bad_one, capsys, monkeypatch, caplog):
    monkeypatch.setattr(training_set, "LOOKED_AT", 1)
    monkeypatch.setattr(training_set, "MEASURED_WITHOUT_HELD_OUT", 1)
    more = ("--videos", str(with_a_bad_one), "--steps", "6", "--preset", "animatediff")
    assert run(place, "bad", *more) == 2
    assert "1.gif cannot be used" in (said := capsys.readouterr().err) and "--skip-bad" in said
    assert run(place, "skipped", *more, "--skip-bad") == 0
    assert caplog.text.count("1.gif is left out") == 1


def test_nan_stops_the_run_and_names_the_step(place, capsys, monkeypatch):
    monkeypatch.setattr(Encoder, "latents_of", lambda *_: torch.full((8, 4, 6, 8), float("nan")))
    assert run(place, "nan", *HARIVO.split(), "--steps", "2") == 2
    assert "Step 1 stopped before its update: the loss is nan" in capsys.readouterr().err
    assert not saved_states(place / "nan/saves")
