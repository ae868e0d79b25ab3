"""`python -m trainer <command>`: finds the command, reads its options, runs it, and turns errors into exit codes."""

import importlib
import inspect
import io
import logging
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ..networks.shown import LONGEST_LINE, ShownFilter, shown
from . import options
from .config import Options, as_toml, read_options, suggestion

log = logging.getLogger("stillmotion")


class Command(NamedTuple):
    options: type[Options]
    module: str
    function: str


COMMANDS = {
    "demo": Command(options.DemoOptions, "demo", "demo"),
    "toy": Command(options.ToyOptions, "toy", "make_toy"),
    "check": Command(options.CheckOptions, "check", "check"),
    "fewshot": Command(options.FewShotOptions, "fewshot", "fewshot"),
    "inflate": Command(options.InflateOptions, "inflate", "inflate"),
    "decouple": Command(options.DecoupleOptions, "decouple", "decouple"),
    "condition": Command(options.ConditionOptions, "condition", "condition"),
    "evaluate": Command(options.EvaluateOptions, "evaluate", "evaluate"),
    "convert": Command(options.ConvertOptions, "convert", "convert"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_all_letters()
    try:
        run(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        return complain(str(error) or type(error).__name__)
    except ModuleNotFoundError as error:
        if "--traceback" in arguments or str(error.name).startswith("stillmotion"):
            raise
        return complain(f'{error.name} is not installed; pip install -e ".[trainer]" in the checkout installs it')
    return 0


FIRST = "demo", "check", "fewshot"
"""Commands whose examples stand above the list of all."""


HELP = "-h", "--help", "help"


def run(arguments: list[str]):
    if not arguments or arguments[0] in HELP and not arguments[1:]:
        print(overview())
        return
    if arguments[0] in ("-V", "--version"):
        print(versions())
        return
    if arguments[0] in HELP:
        arguments = [arguments[1], "--help"]
    name, *rest = arguments
    command = command_of(name)
    chosen = read_options(command.options, rest, f"{program()} {name}")
    start_log()
    log.info("%s %s\n%s", program(), name, as_toml(chosen))
    try:
        function = getattr(importlib.import_module(f".commands.{command.module}", __package__), command.function)
        function(chosen)
    except KeyboardInterrupt:
        log.info("%s", how_to_go_on(arguments, chosen))
        raise


def command_of(name: str) -> Command:
    known = f"the commands are {', '.join(COMMANDS)}"
    if name.startswith("-"):
        raise ValueError(f"{name} stands where the command belongs: {program()} <command> [options]; {known}")
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name}{suggestion(name, COMMANDS, known)}")
    return COMMANDS[name]


def how_to_go_on(arguments: list[str], chosen: Options) -> str:
    """Say after Ctrl-C what a command that is typed now goes on with."""
    if isinstance(chosen, options.DemoOptions):
        return (
            "Stopped. The same command goes on after the last part that was finished, or the last save of the motion."
        )
    if isinstance(chosen, options.EvaluateOptions):
        return "Stopped. The same command goes on: clips that were sampled or measured stay so."
    if not isinstance(chosen, options.TrainOptions):
        return "Stopped."
    from .run.saves import saved_states, saves_of  # here, for most commands have nothing to do with it

    if not saved_states(saves_of(chosen)):
        return "Stopped before the first save. The same command starts again; clips that were encoded stay so."
    resumed = arguments if chosen.resume else [*arguments, "--resume"]
    quoted = subprocess.list2cmdline(resumed) if os.name == "nt" else shlex.join(resumed)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return f"Stopped. To go on: {'accelerate launch … -m trainer' if several else program()} {quoted}"


def versions() -> str:
    """Return the versions that a report of an error needs, the program's own first."""
    file = Path(__file__).parents[1] / "pyproject.toml"  # in a checkout, installed or not
    own = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"] if file.is_file() else None
    libraries = [f"{name} {version_of(name)}" for name in ("torch", "diffusers", "transformers", "accelerate", "peft")]
    return (
        f"stillmotion {own or version_of('stillmotion')} (Python {platform.python_version()}, {', '.join(libraries)})"
    )


def version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


def show_all_letters():
    """Have a console that lacks a letter show something in its place: without this the program would end there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def overview() -> str:
    width = max(map(len, COMMANDS))
    examples = (f"  {program()} {name} {COMMANDS[name].options.examples[0]}".rstrip() for name in FIRST)
    rows = (f"  {name:{width}}  {first_line(command.options)}" for name, command in COMMANDS.items())
    head = [f"usage: {program()} <command> [options]", "", "examples:", *examples, "", "commands:", *rows, ""]
    return "\n".join([*head, "<command> --help lists its options; --version says what is installed."])


def first_line(kind: type[Options]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def program() -> str:
    return "python -m trainer" if Path(sys.argv[0]).name == "__main__.py" else "stillmotion"


def start_log():
    """Show the project's own messages, and on several processes only those of the first, warnings apart."""
    logging.basicConfig(format="%(message)s")
    log.addFilter(ShownFilter())
    first = os.environ.get("RANK", "0") == "0"
    log.setLevel(logging.INFO if first else logging.WARNING)


def complain(message: str) -> int:
    print(f"error: {shown(' '.join(message.split()), LONGEST_LINE)}", file=sys.stderr)
    return 2
