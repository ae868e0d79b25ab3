"""Options as people give them: groups of the help, presets and the files that start from them, former names."""

import re
import shlex
from pathlib import Path

import pytest
from stillmotion.trainer.cli import COMMANDS
from stillmotion.trainer.config import COMMON, GROUPS, groups_of, make_parser, read_options
from stillmotion.trainer.options import DecoupleOptions, FewShotOptions, InflateOptions

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "trainer/presets"
FILES = sorted(PRESETS.iterdir())
ASKED = ["--videos", "v", "--base", "b"]


def inflate(*more):
    return read_options(InflateOptions, [*ASKED, *more], "inflate")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_stands_in_one_group_of_the_help(name):
    kind = COMMANDS[name].options
    groups = groups_of(kind)
    assert sorted(option for names in groups.values() for option in names) == sorted(kind.model_fields)
    text = make_parser(kind, name).format_help()
    heads = [text.index(f"\n{title}:\n") for title in groups]
    assert heads == sorted(heads) and list(groups) == [title for title in GROUPS if title in groups]


def test_the_commands_that_train_have_the_groups_that_people_know():
    for kind in (FewShotOptions, InflateOptions):
        groups = [group for group in groups_of(kind) if group != "known pixels"]
        assert groups == [COMMON, "data", "model", "optimization", "memory", "evaluation", "runtime"]
    groups = groups_of(InflateOptions)
    assert groups[COMMON][:3] == ["videos", "caption", "base"] and {"preset", "steps"} < set(groups[COMMON])
    assert {"halve", "blocks"} < set(groups["model"]) and {"trs", "ema"} < set(groups["optimization"])


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_stand_first_in_the_help_and_are_commands_that_are_understood(name):
    kind = COMMANDS[name].options
    text = make_parser(kind, f"trainer {name}").format_help()
    assert kind.examples and text.index("examples:") < text.index(kind.__doc__.splitlines()[0])
    for words in kind.examples:
        assert f"  trainer {name} {words}".rstrip() + "\n" in text
        given = shlex.split(words)
        read_options(kind, [str(ROOT / word) if word.startswith("trainer/presets") else word for word in given], name)


def test_harivo_is_one_option():
    options = inflate("--preset", "harivo")
    assert (options.regularisation, options.trs, options.contrastive, options.ramp) == (0.1, 0.1, 0.1, 1000)
    assert (options.frames, options.fps, options.schedule) == (24, 6, "linear")
    assert (options.learning_rate, options.final_learning_rate) == (1e-4, 1e-5)
    assert (options.guidance_early, options.guidance, options.mitigation) == (12, 7.5, 40)


def test_a_preset_stands_where_nothing_else_was_said(tmp_path):
    (tmp_path / "run.toml").write_text("preset = 'harivo'\ntrs = 0.2\nframes = 16\n")
    options = inflate("--config", str(tmp_path / "run.toml"), "--frames", "8", "--guidance-early", "none")
    assert (options.trs, options.frames, options.contrastive, options.guidance_early) == (0.2, 8, 0.1, None)
    plain = inflate("--preset", "animatediff")
    assert (plain.trs, plain.frames, plain.schedule, plain.mitigation) == (0, 16, "scaled_linear", 0)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_preset_file_starts_from_its_preset_and_leaves_a_tenth_of_its_gpu(file):
    higen = file.name.startswith("higen")
    kind = DecoupleOptions if higen else InflateOptions
    options, text = read_options(kind, [*ASKED, "--config", str(file)], ""), file.read_text(encoding="utf-8")
    chosen = [line.partition(" = ")[0] for line in text.splitlines()[1:]]
    assert chosen[0] == "preset"
    assert set(chosen) <= {name for name, value in options if not isinstance(value, Path)}, "it names no place"
    of_preset = kind.presets.get(options.preset, {})
    assert all(getattr(options, name) != of_preset[name] for name in of_preset.keys() & set(chosen))
    gib, gpu = re.match(r"# ([\d.]+) of (\d+) GiB: ", text).groups()
    name = options.preset.replace("_", "-") if higen or options.preset == "harivo" else "inflate"
    assert float(gib) <= 0.9 * int(gpu) and file.name == f"{name}-{gpu}gb.toml"
    assert options.batch_size * options.accumulation == 8 and options.checkpointing
    assert options.eight_bit == (gpu == "8" or file.stem == "higen-full-24gb")


def test_former_names_are_read_as_flags_and_in_files(tmp_path):
    assert read_options(FewShotOptions, [*ASKED, "--memory", "none"], "fewshot").recurrence == "none"
    assert inflate("--warm-start", "x.safetensors").init == Path("x.safetensors")
    (tmp_path / "old.toml").write_text("memory = 'paper_rnn'\n")
    old = read_options(FewShotOptions, [*ASKED, "--config", str(tmp_path / "old.toml")], "fewshot")
    assert old.recurrence == "paper_rnn" and "--memory" not in make_parser(FewShotOptions, "fewshot").format_help()
    (tmp_path / "both.toml").write_text("memory = 'none'\nrecurrence = 'none'\n")
    with pytest.raises(ValueError, match="has memory and recurrence, which are one option: leave memory out"):
        read_options(FewShotOptions, [*ASKED, "--config", str(tmp_path / "both.toml")], "fewshot")


def test_a_final_learning_rate_above_the_highest_is_refused():
    with pytest.raises(ValueError, match="--final-learning-rate is 0.1, above --learning-rate, 0.0001"):
        inflate("--final-learning-rate", "0.1")
