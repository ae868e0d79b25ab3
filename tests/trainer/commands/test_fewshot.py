import json
import os
import signal
import time

import numpy as np
import own_process
import pytest
import tiny_run as tiny
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from stillmotion.networks.config import Queries
from stillmotion.networks.inflation import Inflation
from stillmotion.networks.motion_file import read_motion_file, read_motion_info
from stillmotion.trainer.base.host import structure_of
from stillmotion.trainer.cli import main
from stillmotion.trainer.clips.cache import read_tensor
from stillmotion.trainer.options import FewShotOptions
from stillmotion.trainer.run import estimate, milestones
from stillmotion.trainer.run import run as shared_path
from stillmotion.trainer.run.checkpoints import facts_of, read_state, same
from stillmotion.trainer.run.estimate import estimate_memory
from stillmotion.trainer.run.export import fresh_inflation
from stillmotion.trainer.run.processes import make_accelerator
from stillmotion.trainer.run.runlog import read_log
from stillmotion.trainer.run.saves import saved_states
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def words(place, output, *more):
    numbers = "--size 64x48 --frames 3 --steps 4 --save-every 2 --preview-every none --held-out 1 --held-out-every 2"
    return tiny.words(place, "fewshot", output, *numbers.split(), *more)


def fewshot(place, output, *more):
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
    """The folder of one finished run that the tests below look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert fewshot(place, "whole", "--preview-every", "2", "--preview-steps", "2") == 0
    return place / "whole"


def test_the_memory_estimate_is_of_the_run_that_was_asked_for(place, monkeypatch):
    asked = {}

    def noted(*given, **options):
        asked.update(options)
        return estimate_memory(*given, **options)

    monkeypatch.setattr(estimate, "estimate_memory", noted)
    monkeypatch.setattr(shared_path, "report_estimate", estimate.report_estimate)
    monkeypatch.setattr(shared_path, "run", lambda *_: None)  # what follows the estimate
    assert fewshot(place, "estimated", "--accumulation", "2", "--ema", "none") == 0
    assert asked == {"ema": False, "eight_bit": False, "accumulation": 2}


def test_the_motion_file_opens_for_the_base_and_says_how_it_was_made(place, whole):
    info, tensors = read_motion_file(whole / "whole.safetensors", fits=structure_of(tiny.tiny_unet(context=768)))
    assert (info.frames, info.fps, info.width, info.height) == (3, 8.0, 64, 48)
    assert info.captions == tuple(f"a square moves, number {n}" for n in range(3))
    assert info.config.queries == Queries(16) and info.options["steps"] == 4
    assert str(place) not in json.dumps(info.options)
    fresh = fresh_inflation(info.config, info.structure, 0).state_dict()
    assert any(not torch.equal(tensors[name], fresh[name]) for name in fresh)


def test_the_exported_weights_are_the_running_mean(whole):
    tensors = load_file(whole / "whole.safetensors")
    average = read_state(saved_states(whole / "saves")[-1])["ema"]
    assert all(torch.equal(tensor, average[f"module.inflation.{name}"]) for name, tensor in tensors.items())


def test_a_run_leaves_options_log_previews_saves_and_workflow(whole):
    lines = read_log(whole / "log.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [0, 2, 4]
    assert lines[0]["event"] == "start" and lines[0]["held_out"] == ["1.gif"]
    assert set(lines[-1]["moved"]) == {"frame_attention", "recurrence", "queries"}
    assert {path.name for path in (whole / "saves").iterdir()} == {
        f"{name}-00000{step}.{kind}" for step in (2, 4) for name, kind in (("state", "pt"), ("whole", "safetensors"))
    }
    assert Image.open(whole / "previews" / "step-000004.webp").n_frames == 3
    assert "steps = 4" in (whole / "options.toml").read_text()
    workflow = (whole / "whole_workflow.json").read_text()
    assert "whole.safetensors" in workflow and "DiffusersLoader" in workflow and "CheckpointLoader" not in workflow
    assert (whole / "clips.png").exists()


def curve(folder, name):
    """What TensorBoard shows of a number: {step: value}, the values of all files of a run together."""
    events = EventAccumulator(str(next((folder / "tensorboard").rglob("events*")).parent)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_shows_the_numbers_of_the_log(whole):
    lines = read_log(whole / "log.jsonl")
    for name in ("loss", "learning_rate", "gradient_norm", "held_out_loss"):
        assert curve(whole, name) == pytest.approx({line["step"]: line[name] for line in lines if name in line})


def test_killed_and_resumed_gives_the_same_motion_file(place, whole):
    """SIGKILL as soon as the third step is in the log; what is left of the run goes on in this process."""
    process = own_process.start(own_process.command, words(place, "killed", "--save-every", "1"))
    while process.is_alive() and not any(line.get("step") == 3 for line in read_log(place / "killed/log.jsonl")):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (place / "killed/killed.safetensors").exists()
    (place / "killed/.killed.safetensors.17.tmp").touch()
    assert fewshot(place, "killed", "--resume") == 0
    assert not list((place / "killed").rglob("*.tmp"))
    assert same(load_file(place / "killed/killed.safetensors"), load_file(whole / "whole.safetensors"))
    mine, theirs = (read_motion_info(place / name / f"{name}.safetensors").options for name in ("killed", "whole"))
    asked = {"preview_every", "preview_steps"}
    assert {name for name in mine | theirs if mine.get(name) != theirs.get(name)} == asked, "not that it was resumed"
    steps = [line["step"] for line in read_log(place / "killed/log.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4] and curve(place / "killed", "loss")[4] == pytest.approx(curve(whole, "loss")[4])


def test_a_finished_run_is_not_overwritten(place, whole, capsys):
    assert fewshot(place, "whole") == 2
    assert "holds a run already, and it is finished" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_motion_file_without_its_run_is_not_overwritten(place, capsys, more):
    mine = place / "mine/mine.safetensors"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"made elsewhere")
    assert fewshot(place, "mine", *more) == 2
    assert "mine.safetensors is there already, and no save to go on from" in capsys.readouterr().err
    assert mine.read_bytes() == b"made elsewhere"


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(place, capsys):
    (place / "file").touch()
    assert fewshot(place, "file", "--videos", str(place / "nowhere")) == 2
    assert "file, which is a file; give a folder for the run" in capsys.readouterr().err


def test_a_base_that_is_not_there_is_named_before_a_clip_is_read(place, capsys):
    assert fewshot(place, "none", "--base", "nowhere", "--videos", str(place / "nowhere")) == 2
    assert "there is no base model at nowhere" in capsys.readouterr().err


def record_of(folder):
    """Content of the files that say what a run was, and of its motion file; and when they were written."""
    files = ("options.toml", "clips.png", "log.jsonl", "whole.safetensors")
    return [((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns) for name in files]


@pytest.mark.parametrize(
    "change, said",
    [
        (("--learning-rate", "0.5"), "--learning-rate is 0.5, but"),
        (("--ema", "none"), "--ema is none, but"),
        (("--accumulation", "2"), "--accumulation times the number of processes is 2, but"),
        (("--caption", "other"), "--videos is clips with the hash"),
    ],
)
def test_resuming_with_a_change_that_matters_names_the_option(place, whole, capsys, change, said):
    before = record_of(whole)
    assert fewshot(place, "whole", "--resume", *change) == 2
    assert said in capsys.readouterr().err
    assert record_of(whole) == before


def test_a_resume_refused_for_its_clips_leaves_the_record_of_the_run(place, whole, capsys):
    before = record_of(whole)
    assert fewshot(place, "whole", "--resume", "--frames", "99") == 2
    assert "None of the 3 clips can be used" in capsys.readouterr().err
    assert record_of(whole) == before


def test_what_changes_no_weight_may_change(place, whole):
    facts = facts_of(read_state(saved_states(whole / "saves")[-1]))
    assert not {"output", "keep", "save_every", "preview_every", "cache"} & set(facts)
    assert {"seed", "steps", "frames", "precision", "first_frame", "micro_batches"} < set(facts)


def test_too_few_clips_to_hold_one_out(place, capsys):
    assert fewshot(place, "none", "--held-out", "3") == 2
    assert "at least one must be left to train on" in capsys.readouterr().err


def test_nothing_to_train_is_refused(place, capsys):
    off = ("--queries", "none", "--memory", "none", "--no-frame-attention")
    assert fewshot(place, "none", *off) == 2
    assert "nothing would train" in capsys.readouterr().err


def test_fp16_without_a_gpu_is_refused(place, capsys):
    assert fewshot(place, "none", "--precision", "fp16") == 2
    assert "--precision is fp16, which needs a GPU" in capsys.readouterr().err


def test_a_preview_that_does_not_fit_costs_no_save(place, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(milestones, "sample_preview", full)
    with pytest.raises(torch.OutOfMemoryError):
        fewshot(place, "full", "--preview-every", "2")
    assert [path.name for path in saved_states(place / "full" / "saves")] == ["state-000002.pt"]


def test_with_a_clean_first_frame_previews_start_from_that_of_the_first_clip(place, monkeypatch):
    seen, black = [], np.zeros((3, 8, 8, 3), np.uint8)
    monkeypatch.setattr(milestones, "decode_clip", lambda vae, latents: seen.append(latents) or black)
    monkeypatch.setattr(milestones, "write_preview", lambda *_: None)
    assert fewshot(place, "clean", "--first-frame", "clean", "--preview-every", "4", "--preview-steps", "2") == 0
    stored = [read_tensor(path) for path in (place / "cache").glob("*.safetensors")]
    assert any(tensor.ndim == 4 and torch.equal(tensor[0].float(), seen[0][0]) for tensor in stored)


def test_deterministic_runs_set_what_cublas_needs(place, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    chosen = FewShotOptions(videos=place / "clips", base=place / "base", precision="fp32", deterministic=True)
    AcceleratorState._reset_state(True)
    try:
        make_accelerator(chosen)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_fresh_inflation_is_that_of_its_seed():
    structure = structure_of(tiny.tiny_unet())
    state = torch.random.get_rng_state()
    first, again, other = (fresh_inflation(tiny.CONFIG, structure, seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.keys() == Inflation(tiny.CONFIG, structure).state_dict().keys()
