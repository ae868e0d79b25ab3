"""The one import of ComfyUI's node API, and inputs that several nodes have."""

from inspect import signature

from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io", "schema", "seed_input", "ui", "where_known"]


def where_known(make: type, *args, **options):
    """Return `make(*args, **options)` without the options that this version's class does not know."""
    known = signature(make).parameters
    return make(*args, **{name: value for name, value in options.items() if name in known})


def seed_input(tooltip: str):
    """Return a seed input as the host's samplers have it."""
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=tooltip)


def schema(*, search: str, **options) -> io.Schema:
    """Return the schema of a node.

    Args:
        search: what else people type to find it, between commas; newer versions of the host look there too.
    """
    return where_known(io.Schema, search_aliases=search.split(", "), **options)
