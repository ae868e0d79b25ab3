"""The ComfyUI that benchmarks run in: the checkout at $COMFYUI_PATH or ~/comfy/ComfyUI."""

import os
import sys
from pathlib import Path

from side_by_side import DEVICE

COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")


def load_comfyui():
    """Make `comfy` importable, on the CPU where there is no GPU; returns its arguments."""
    sys.path.insert(0, str(COMFYUI))
    import comfy.cli_args
    import comfy.options  # noqa: F401

    comfy.cli_args.args.cpu = DEVICE.type == "cpu"
    return comfy.cli_args.args
