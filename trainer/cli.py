"""`python -m trainer <command>`: finds the command, reads its options, runs it, and turns errors into exit codes."""

import importlib
import inspect
import io
import logging
import os
import sys
from pathlib import Path
from typing import NamedTuple

from ..networks.shown import LONGEST_LINE, ShownFilter, shown
from . import options
from .config import Options, as_toml, read_options, suggestion


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


def run(arguments: list[str]):
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name}{suggestion(name, COMMANDS)}")
    command = COMMANDS[name]
    chosen = read_options(command.options, rest, f"{program()} {name}")
    start_log()
    logging.getLogger("stillmotion").info("%s %s\n%s", program(), name, as_toml(chosen))
    function = getattr(importlib.import_module(f".commands.{command.module}", __package__), command.function)
    function(chosen)


def show_all_letters():
    """Have a console that lacks a letter show something in its place: without this the program would end there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def overview() -> str:
    width = max(map(len, COMMANDS))
    rows = (f"  {name:{width}}  {first_line(command.options)}" for name, command in COMMANDS.items())
    return "\n".join([f"usage: {program()} <command> [options]", "", *rows, "", "<command> --help lists its options."])


def first_line(kind: type[Options]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def program() -> str:
    return "python -m trainer" if Path(sys.argv[0]).name == "__main__.py" else "stillmotion"


def start_log():
    """Show the project's own messages, and on several processes only those of the first, warnings apart."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("stillmotion").addFilter(ShownFilter())
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("stillmotion").setLevel(logging.INFO if first else logging.WARNING)


def complain(message: str) -> int:
    print(f"error: {shown(' '.join(message.split()), LONGEST_LINE)}", file=sys.stderr)
    return 2
