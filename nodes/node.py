"""What all our nodes have in common: their numbers are held to their schema before they run."""

from __future__ import annotations

import functools
import inspect
import math
import operator

from .compat import io


class Node(io.ComfyNode):
    """Base of every node.

    The host holds to the schema's limits only what is written into a graph, and lets NaN through even there; numbers
    also come from other nodes. Whatever calls `execute` passes the check.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        run = cls.__dict__.get("execute")
        if run and not hasattr(run.__func__, "__wrapped__"):  # the host makes classes of our classes
            cls.execute = classmethod(_checked(run.__func__))


def _checked(run):
    bind = inspect.signature(run).bind

    @functools.wraps(run)
    def execute(cls, *args, **kwargs):
        check_numbers(cls.SCHEMA or cls.define_schema(), bind(cls, *args, **kwargs).arguments | kwargs)
        return run(cls, *args, **kwargs)

    return execute


def check_numbers(schema: io.Schema, values: dict) -> None:
    """Raise ValueError where a number is not finite, not whole where it should be, or outside the schema's limits."""
    for known in schema.inputs:
        value = values.get(known.id)
        check_number(schema.display_name, known, value)
        if isinstance(known, io.DynamicCombo.Input) and isinstance(value, dict):
            for own in chosen_inputs(known, value):
                check_number(schema.display_name, own, value.get(own.id))


def check_number(node: str | None, known, value) -> None:
    if isinstance(known, io.Float.Input | io.Int.Input) and value is not None:
        whole = isinstance(known, io.Int.Input)
        if not _is_number(value, whole) or not known.min <= value <= known.max:
            allowed = f"whole number from {known.min}" if whole else f"number from {known.min:g}"
            most = known.max if whole else f"{known.max:g}"
            raise ValueError(f"{node}: {known.id} is {str(value)[:50]}; it must be a {allowed} to {most}.")


def chosen_inputs(combo: io.DynamicCombo.Input, value: dict) -> list:
    """Return the inputs that a choice brings with it, whose values stand beside it."""
    return [own for option in combo.options if option.key == value.get(combo.id) for own in option.inputs]


def _is_number(value, whole: bool) -> bool:
    try:
        number = operator.index(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return whole or (not isinstance(value, str) and math.isfinite(number))
