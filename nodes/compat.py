"""The one import of ComfyUI's node API."""

from inspect import signature

from comfy_api.latest import ComfyExtension, io, ui

__all__ = ["ComfyExtension", "io", "ui", "where_known"]


def where_known(make: type, *args, **options):
    """`make(*args, **options)` without the options that this version's class does not know."""
    known = signature(make).parameters
    return make(*args, **{name: value for name, value in options.items() if name in known})
