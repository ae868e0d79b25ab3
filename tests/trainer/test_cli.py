import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from stillmotion.trainer import cli
from stillmotion.trainer.config import Options, Size, as_toml, make_parser, read_options


class Learn(Options):
    """Learn something.

    A second line, 100 % of it.
    """

    videos: Annotated[Path, Field(description="folder with the clips")]
    steps: Annotated[int, Field(description="optimiser steps", ge=1)] = 1000
    learning_rate: Annotated[float, Field(description="of AdamW", gt=0)] = 3e-5
    size: Annotated[Size, Field(description="of the frames")] = (512, 320)
    preview_size: Annotated[Size | None, Field(description="of previews")] = None
    ema: Annotated[float | None, Field(description="decay of the average", lt=1)] = 0.99
    mixed: Annotated[bool, Field(description="half precision")] = True
    crop: Annotated[Literal["center", "random"], Field(description="which part is kept")] = "center"
    bits: Annotated[Literal[8, 16, 32], Field(description="of the optimiser's state")] = 32
    betas: Annotated[tuple[float, float], Field(description="of AdamW")] = (0.9, 0.999)
    prompts: Annotated[tuple[str, ...], Field(description="for previews")] = ()


def read(*arguments):
    return read_options(Learn, list(arguments), "stillmotion learn")


def refusal(*arguments):
    with pytest.raises(ValueError) as error:
        read(*arguments)
    return str(error.value)


def test_flags_become_typed_values():
    given = read(
        *("--videos", "a b", "--learning-rate", "1e-3", "--size", "64x48", "--preview-size", "32X24", "--no-mixed"),
        *("--crop=random", "--bits", "8", "--betas", "0.8", "0.9", "--prompts", "a cat", "a dog", "--ema", "none"),
    )
    assert given == Learn(
        videos=Path("a b"),
        learning_rate=1e-3,
        size=(64, 48),
        preview_size=(32, 24),
        ema=None,
        mixed=False,
        crop="random",
        bits=8,
        betas=(0.8, 0.9),
        prompts=("a cat", "a dog"),
    )


def test_defaults_stay_where_nothing_is_given():
    assert read("--videos", "a") == Learn(videos=Path("a"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--steps", "5"], ["--videos is required", "folder with the clips"]),
        (["--videos", "a", "--steps", "0"], ["--steps is 0", "greater than or equal to 1"]),
        (["--videos", "a", "--steps", "many"], ["--steps is many", "integer"]),
        (["--videos", "a", "--steps"], ["--steps", "expected one argument"]),
        (["--videos", "a", "--size", "512"], ["--size is 512", "512x320"]),
        (["--videos", "a", "--size", "0x8"], ["--size is 0", "greater than 0"]),
        (["--videos", "a", "--preview-size", "8x"], ["--preview-size is 8x", "512x320"]),
        (["--videos", "a", "--ema", "nan"], ["--ema is nan", "finite number"]),
        (["--videos", "a", "--crop", "centre"], ["--crop is centre", "'center' or 'random'"]),
        (["--videos", "a", "--bits", "4"], ["--bits is 4", "8, 16 or 32"]),
        (["--videos", "a", "--steps", "0", "--bits", "4"], ["--steps is 0", "--bits is 4"]),
        (["--videos", "a", "--learning_rate", "1"], ["no option --learning_rate", "did you mean --learning-rate?"]),
        (["--videos", "a", "--stpes=5"], ["no option --stpes", "did you mean --steps?"]),
        (["--vid", "a"], ["no option --vid", "did you mean --videos?"]),
        (["--lr", "1"], ["no option --lr", "did you mean --learning-rate?"]),
        (["--max_train_steps", "1"], ["no option --max_train_steps", "did you mean --steps?"]),
        (["--zzz"], ["no option --zzz; --help lists the options"]),
        (["--videos", "a.mp4", "b.mp4"], ["b.mp4 stands behind no option", "the name of a folder stands for all"]),
    ],
)
def test_a_refused_flag_is_named_with_its_value_and_what_is_allowed(arguments, words):
    message = refusal(*arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["check", "fewshot", "inflate"])
@pytest.mark.parametrize("size", ["65x48", "100000x64"])
def test_sizes_that_cannot_be_trained_on_are_refused_before_a_clip_is_read(name, size):
    given = ["--videos", "a", *([] if name == "check" else ["--base", "b"]), "--size", size]
    with pytest.raises(ValueError, match=f"--size is {size}; width and height must be multiples of 8 up to 2048"):
        read_options(cli.COMMANDS[name].options, given, name)


@pytest.mark.parametrize("name", ["demo", "toy", "fewshot", "inflate"])
def test_seeds_that_torch_does_not_know_are_refused(name):
    given = ["--videos", "a", "--base", "b"] if name in ("fewshot", "inflate") else []
    assert read_options(cli.COMMANDS[name].options, [*given, "--seed", str(2**63 - 1)], name).seed == 2**63 - 1
    with pytest.raises(ValueError, match="--seed is 9223372036854775808; it should be less than or equal to"):
        read_options(cli.COMMANDS[name].options, [*given, "--seed", str(2**63)], name)


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('videos = "clips"\nsteps = 7\nsize = "64x48"\nbetas = [0.5, 0.6]\n', encoding="utf-8")
    given = read("--config", str(file), "--steps", "9")
    assert given == Learn(videos=Path("clips"), steps=9, size=(64, 48), betas=(0.5, 0.6))


@pytest.mark.parametrize(
    "text, words",
    [
        (b"stpes = 5", ["no option stpes", "did you mean steps?"]),
        (b"lr = 5", ["no option lr", "did you mean learning_rate?"]),
        (b"[learn]\nsteps = 5", ["no option learn"]),
        (b"steps = 0", ["steps in ", "is 0", "greater than or equal to 1"]),
        (b"steps = true", ["steps in ", "is True; it should be a number"]),
        (b"ema = false", ["ema in ", "is False; it should be a number"]),
        (b"size = [64, 48, 3]", ["size in ", "is [64, 48, 3]; a size is width x height"]),
        (b"prompts = 'a cat'", ["prompts in ", "is a cat; it should be a list"]),
        (b"steps: 5", ["not a TOML file", "line 1"]),
        (b"\xff\xfe", ["not a TOML file"]),
    ],
)
def test_a_refused_file_is_named(tmp_path, text, words):
    file = tmp_path / "run.toml"
    file.write_bytes(text)
    message = refusal("--videos", "a", "--config", str(file))
    assert all(word in message for word in [*words, str(file)]), message


def test_a_path_that_is_none_is_said_in_plain_words(tmp_path):
    (tmp_path / "run.toml").write_text("videos = 3", encoding="utf-8")
    assert refusal("--config", str(tmp_path / "run.toml")).endswith("is 3; it should be a path, in quotes")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.toml"):
        read("--config", "nowhere.toml")


@pytest.mark.parametrize(
    "arguments", [["--ema", "none", "--prompts", 'a "quoted" \\ 猫', "b"], ["--preview-size", "8x16"]]
)
def test_options_written_as_toml_read_back_the_same(tmp_path, arguments):
    given = read("--videos", "ünïcode clips", *arguments)
    file = tmp_path / "run.toml"
    file.write_text(as_toml(given), encoding="utf-8")
    assert read("--config", str(file)) == given


def test_help_shows_type_default_and_choices():
    text = " ".join(make_parser(Learn, "stillmotion learn").format_help().split())
    for words in (
        *("100 % of it", "--videos PATH folder with the clips (required)", "--steps INT", "(default: 1000)"),
        *("--size WxH of the frames (default: 512x320)", "--preview-size WxH of previews (default: none)"),
        *("--mixed, --no-mixed half precision (default: yes)", "--crop {center,random}", "(default: 0.9 0.999)"),
    ):
        assert words in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_for_itself_and_each_option(name):
    kind = cli.COMMANDS[name].options
    assert cli.first_line(kind).endswith(".") and cli.first_line(kind) != cli.first_line(Options)
    assert all(field.description for field in kind.model_fields.values())
    make_parser(kind, name).format_help()


def test_without_a_command_the_commands_are_listed(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(
        f"  {name}" in printed and cli.first_line(cli.COMMANDS[name].options) in printed for name in cli.COMMANDS
    )


def raising(error):
    def command(options):
        raise error

    return command


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Makes the command `learn` fail with a given error, and returns the exit code."""

    def run(error, *arguments):
        (module := type(sys)("stillmotion.trainer.commands.learn")).learn = raising(error)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "learn", cli.Command(Learn, "learn", "learn"))
        return cli.main(["learn", "--videos", "a", *arguments])

    return run


@pytest.mark.parametrize(
    "error", [ValueError("--videos a:\nno clip"), FileNotFoundError("a is no folder"), OSError(28, "No space left")]
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(command, capsys, error):
    assert command(error) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1] == f"error: {' '.join(str(error).split())}"


def test_ctrl_c_exits_130(command):
    assert command(KeyboardInterrupt()) == 130


def test_a_missing_library_is_named_with_the_command_that_installs_it(command, capsys):
    assert command(ModuleNotFoundError("No module named 'peft'", name="peft")) == 2
    assert "peft is not installed; pip install" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("bug"), ModuleNotFoundError("x", name="stillmotion.trainer.x")])
def test_other_errors_keep_their_traceback(command, error):
    with pytest.raises(type(error)):
        command(error)


def test_traceback_shows_where_an_error_arose(command):
    with pytest.raises(ValueError):
        command(ValueError("x"), "--traceback")


def test_an_unknown_command_is_refused_with_a_suggestion(capsys):
    assert cli.main(["fewshots"]) == 2
    assert capsys.readouterr().err == "error: There is no command fewshots; did you mean fewshot?\n"
    assert cli.main(["zzz"]) == 2 and "the commands are demo, toy, check" in capsys.readouterr().err
    assert cli.main(["--videos", "x"]) == 2 and "--videos stands where the command belongs" in capsys.readouterr().err


def test_the_version_comes_with_those_of_the_libraries(capsys):
    assert cli.main(["--version"]) == 0
    checkout = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert said.startswith(f"stillmotion {checkout['project']['version']} (Python 3.") and "torch 2." in said


@pytest.fixture
def stopped(monkeypatch, caplog):
    """Says what Ctrl-C is answered with, by a command with these words."""
    caplog.set_level("INFO", "stillmotion")

    def said(*words, command="fewshot"):
        module = type(sys)(f"stillmotion.trainer.commands.{command}")
        setattr(module, command, raising(KeyboardInterrupt()))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        assert cli.main([command, *words]) == 130
        return caplog.messages[-1]

    return said


def test_ctrl_c_gives_the_line_that_goes_on(stopped, tmp_path):
    given = "--videos", "my clips", "--output", str(tmp_path)
    assert stopped(*given).startswith("Stopped before the first save. The same command starts again")
    (tmp_path / "saves").mkdir()
    (tmp_path / "saves/state-000250.pt").touch()
    line = f"Stopped. To go on: {cli.program()} fewshot --videos 'my clips' --output {tmp_path} --resume"
    assert stopped(*given) == stopped(*given, "--resume") == line


def test_ctrl_c_in_an_evaluation_says_what_stays(stopped):
    assert "The same command goes on" in stopped("--videos", "clips", command="evaluate")


def test_on_several_processes_the_line_starts_as_they_were_started(stopped, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "saves").mkdir()
    (tmp_path / "saves/state-000250.pt").touch()
    assert stopped("--videos", "c", "--output", str(tmp_path)).startswith(
        "Stopped. To go on: accelerate launch … -m trainer fewshot --videos c"
    )


def test_the_resolved_options_are_shown(command, caplog):
    command(ValueError("x"), "--steps", "3")
    assert "steps = 3\n" in caplog.text and "learning_rate = 3e-05\n" in caplog.text


def test_help_of_a_command_is_had_in_either_order(capsys):
    said = []
    for words in (["check", "--help"], ["help", "check"], ["--help", "check"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        said.append(capsys.readouterr().out)
    assert "--videos" in said[0] and said[0] == said[1] == said[2]
    assert cli.main(["help"]) == 0 and "commands:" in capsys.readouterr().out
    assert cli.main(["help", "chek"]) == 2 and "did you mean check?" in capsys.readouterr().err


def test_help_loads_no_heavy_library():
    code = """
import sys
from stillmotion.trainer.cli import main
try:
    main(["fewshot", "--help"])
finally:
    print(*sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.splitlines()[-1].split()}
    assert "pydantic" in loaded and not loaded & {"torch", "numpy", "diffusers", "transformers", "av", "cv2", "PIL"}


def test_accelerate_launch_starts_the_trainer():
    checkout = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "-m", "trainer", "stray"],
        cwd=checkout,
        env={**os.environ, "ACCELERATE_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
    )
    assert "error: There is no command stray" in result.stderr
