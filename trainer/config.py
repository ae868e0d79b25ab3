"""Options of a command: one pydantic model, given as flags, as a TOML file, or as both.

A field is declared as `steps: Annotated[int, Field(description="optimiser steps", ge=1)] = 1000`; the flag `--steps`,
its help, its limits and the key `steps` of the TOML file all come from that line.
"""

import argparse
import inspect
import json
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ..networks.shown import shown


class Options(BaseModel):
    """Base of every command's options; the docstring of a subclass is the command's help.

    `group`: title under which `--help` shows the options that a class declares first. `common`: names of those that
    most people set, which it shows before all others. `examples`: words after the command's name, as one types them.
    `renamed`: former names of options, which are still read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    group: ClassVar[str] = "options"
    common: ClassVar[tuple[str, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[dict[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def no_number_is_a_switch(cls, value, info: ValidationInfo):
        """Refuse true and false for numbers: to pydantic `true` is 1."""
        if isinstance(value, bool) and type_of(cls.model_fields[info.field_name or ""]) in (int, float):
            raise ValueError("it should be a number, not true or false")
        return value


def parse_size(value):
    """Turn "512x320" into (512, 320); two values of a list go on to pydantic as they are."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return value
    if not isinstance(value, str):
        raise ValueError("a size is width x height in pixels, such as 512x320")
    width, times, height = value.lower().partition("x")
    if not (times and width.strip().isdecimal() and height.strip().isdecimal()):
        raise ValueError("a size is width x height in pixels, such as 512x320")
    return int(width), int(height)


def format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


COMMON = "what most people set"
GROUPS = (
    *(COMMON, "options", "data", "model", "known pixels", "decoupling", "spatial weights", "generation"),
    *("optimization", "memory", "evaluation", "runtime"),
)
"""In the order in which `--help` shows them."""

SIZE = BeforeValidator(parse_size)
Size = Annotated[tuple[PositiveInt, PositiveInt], SIZE, PlainSerializer(format_size, when_used="json")]


def read_options(kind: type[Options], arguments: list[str], prog: str) -> Options:
    """Return the options that `arguments` give, and the file named by their `--config`; a flag wins over the file.

    Raises:
        ValueError: one sentence that names the flag or key, its value and what is allowed.
        FileNotFoundError: the `--config` file does not exist.
    """
    given, unknown = make_parser(kind, prog).parse_known_args(arguments)
    refuse_unknown_flags(unknown, kind)
    flags = {name: value for name, value in vars(given).items() if name in kind.model_fields}
    path = getattr(given, "config", None)
    from_file = read_file(path, kind) if path else {}
    values = {name: read_word(value, kind.model_fields[name]) for name, value in {**from_file, **flags}.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = {name: flag_of(name) for name in kind.model_fields}
        where |= {name: f"{name} in {path}" for name in from_file.keys() - flags.keys()}
        raise ValueError("; ".join(describe(e, where, kind) for e in error.errors())) from error


def defaults_of(kind: type[Options]) -> dict[str, Any]:
    """Return the options that have a default, as they stand in JSON."""
    fields = {name: field for name, field in kind.model_fields.items() if not field.is_required()}
    values = kind.model_construct(**{n: f.get_default(call_default_factory=True) for n, f in fields.items()})
    return values.model_dump(mode="json", include=set(fields))


def as_toml(options: Options) -> str:
    """Return the options as a file that `--config` reads back to the same options."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in options.model_dump(mode="json").items())


def toml_value(value) -> str:
    """Write a value as JSON, which is TOML for all but null: "none" stands for it."""
    return json.dumps("none" if value is None else value, ensure_ascii=False)


PLACES = {"output", "resume", "overwrite", "cache", "dry_run", "install"}
"""Options of where a result goes and of how it came about, which change nothing of it."""


def recorded(options: Options) -> dict[str, Any]:
    """Return the options that a file holds, so that equal runs make equal files wherever they put them."""
    return options.model_dump(mode="json", exclude=PLACES)


def refuse_existing(overwrite: bool, *paths: Path) -> None:
    """Raise ValueError where a file would be lost that nobody said may be."""
    if there := [path for path in paths if path.exists() and not overwrite]:
        raise ValueError(f"{there[0]} is there already: --overwrite replaces it, or choose another place")


def make_parser(kind: type[Options], prog: str) -> argparse.ArgumentParser:
    """Make a flag of each field. Values stay text: pydantic alone decides what they mean and which are allowed."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description_of(kind, prog),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, names in groups_of(kind).items():
        group = parser.add_argument_group(title)
        for name in names:
            field = kind.model_fields[name]
            group.add_argument(flag_of(name), dest=name, help=help_of(field).replace("%", "%%"), **form_of(field))
    for old, name in former_names(kind).items():
        form = form_of(kind.model_fields[name])
        parser.add_argument(flag_of(old), dest=name, help=argparse.SUPPRESS, **form)
    every = parser.add_argument_group("every command")
    every.add_argument("--config", type=Path, metavar="FILE", help="TOML file with these options; flags win over it")
    every.add_argument("--traceback", action="store_true", help="on an error, show where in the code it arose")
    every.add_argument("-h", "--help", action="help", help="show this and stop")
    return parser


def description_of(kind: type[Options], prog: str) -> str:
    """Return what stands above the options: how the command is typed, and what it does."""
    examples = "".join(f"  {prog} {words}".rstrip() + "\n" for words in kind.examples)
    return (f"examples:\n{examples}\n" if examples else "") + (inspect.getdoc(kind) or "")


def groups_of(kind: type[Options]) -> dict[str, list[str]]:
    """Return names of the options by the group of the class that declares them first, required ones in front; those
    that most people set are a group of their own."""
    groups: dict[str, list[str]] = {COMMON: list(kind.common)} if kind.common else {}
    for name in sorted(kind.model_fields, key=lambda name: not kind.model_fields[name].is_required()):
        first = next(c for c in reversed(kind.__mro__) if name in c.__dict__.get("__annotations__", {}))
        if name not in kind.common:
            groups.setdefault(first.group, []).append(name)
    return dict(sorted(groups.items(), key=lambda group: GROUPS.index(group[0])))


def former_names(kind: type[Options]) -> dict[str, str]:
    """Return former names of a command's options, with the present ones."""
    return {old: name for c in kind.__mro__ if issubclass(c, Options) for old, name in c.renamed.items()}


class Parser(argparse.ArgumentParser):
    """Raises what argparse would print below the usage, so that every error is one line."""

    def error(self, message):
        raise ValueError(message.removeprefix("argument "))


def flag_of(name: str) -> str:
    """Return the flag of an option; one whose name would be a keyword of Python has a "_" behind it."""
    return "--" + name.removesuffix("_").replace("_", "-")


def type_of(field: FieldInfo) -> Any:
    """Return the field's type without `| None` and without annotations."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(member for member in get_args(kind) if member is not NoneType)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def is_size(field: FieldInfo) -> bool:
    members = (field.annotation, *get_args(field.annotation))
    return SIZE in field.metadata or any(SIZE in getattr(member, "__metadata__", ()) for member in members)


def form_of(field: FieldInfo) -> dict[str, Any]:
    """Return what argparse must know: how many values the flag takes, and what the help calls them."""
    kind = type_of(field)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if is_size(field):
        return {"metavar": "WxH"}
    if get_origin(kind) is Literal:
        return {"metavar": "{" + ",".join(map(str, get_args(kind))) + "}"}
    if get_origin(kind) in (list, tuple):
        members = get_args(kind)
        fixed = get_origin(kind) is tuple and Ellipsis not in members
        return {"nargs": len(members) if fixed else "+", "metavar": members[0].__name__.upper()}
    return {"metavar": kind.__name__.upper()}


def help_of(field: FieldInfo) -> str:
    if field.is_required():
        return f"{field.description} (required)"
    default = field.get_default(call_default_factory=True)
    if is_size(field) and default is not None:
        default = format_size(default)
    if isinstance(default, list | tuple):
        default = " ".join(map(str, default)) or None
    words = {None: "none", True: "yes", False: "no"}
    shown = words[default] if default is None or isinstance(default, bool) else default
    return f"{field.description} (default: {shown})"


def read_word(value, field: FieldInfo):
    """Give the words a flag or TOML file has for what text cannot say: "none", and choices that are numbers."""
    if not isinstance(value, str):
        return value
    if value == "none" and NoneType in get_args(field.annotation):
        return None
    kind = type_of(field)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return {str(choice): choice for choice in choices}.get(value, value)


def read_file(path: Path, kind: type[Options]) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} is not a file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # not TOML, or not text
        raise ValueError(f"--config {path} is not a TOML file: {error}") from error
    former = former_names(kind)
    for name in values.keys() - kind.model_fields.keys() - former.keys():
        raise ValueError(f"{path}: there is no option {shown(name, 100)}{suggestion(name, kind.model_fields)}")
    for old in former.keys() & values.keys():
        if former[old] in values:
            raise ValueError(f"{path} has {old} and {former[old]}, which are one option: leave {old} out")
    return {former.get(name, name): value for name, value in values.items()}


def refuse_unknown_flags(unknown: list[str], kind: type[Options]):
    known = [flag_of(name) for name in kind.model_fields] + ["--config", "--traceback", "--help"]
    for word in unknown:
        if not word.startswith("-"):
            raise ValueError(
                f"{shown(word, 100)} stands behind no option: quotes keep a value with spaces in one piece, and the"
                " name of a folder stands for all files in it"
            )
        flag = word.partition("=")[0]
        raise ValueError(f"There is no option {shown(flag, 100)}{suggestion(flag, known)}")


ELSEWHERE = {
    **{"lr": "learning_rate", "epochs": "steps", "max_train_steps": "steps", "network_dim": "rank"},
    **{"fp16": "precision", "model": "base", "checkpoint": "base", "pretrained_model_name_or_path": "base"},
    **{"resolution": "size", "data": "videos", "dataset": "videos", "prompt": "caption"},
    **{"output_dir": "output", "out": "output"},
}
"""What other trainers call an option."""


def suggestion(word: str, known: Iterable[str], otherwise: str = "--help lists the options") -> str:
    """Return the end of a sentence about a word that is not known: the nearest one that is, or what else to do."""
    ours = ELSEWHERE.get(word.strip("-").replace("-", "_"), "")
    close = [name for name in (ours, flag_of(ours)) if name in known] or get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; {otherwise}"


def describe(error: ErrorDetails, where: dict[str, str], kind: type[Options]) -> str:
    """Return one of pydantic's errors as a sentence for the person who typed the value."""
    limit = error["msg"].removeprefix("Value error, ").replace("Input should", "it should", 1)
    limit = "it should be a path, in quotes" if error["type"] == "path_type" else limit
    limit = limit.replace("be a valid tuple", "be a list")  # which TOML has
    if not error["loc"]:  # the class itself checks how its options go together
        return limit
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"{where[name]} is required: {kind.model_fields[name].description}"
    return f"{where[name]} is {shown(error['input'] or repr(error['input']), 100)}; {limit}"
