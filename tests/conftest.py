import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")

# `python -m pytest` puts the checkout on the path; there `nodes` would be ours and not ComfyUI's.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def is_missing(requirement):
    try:
        return not version(requirement)
    except PackageNotFoundError:
        return True


def why_no_comfyui():
    """The reason why tests cannot run against a real ComfyUI in this environment, or None."""
    if not (COMFYUI / "requirements.txt").is_file():
        return f"no ComfyUI at {COMFYUI}; COMFYUI_PATH may name another folder"
    lines = (COMFYUI / "requirements.txt").read_text(encoding="utf-8").splitlines()
    missing = [word.group() for line in lines if (word := re.match(r"[\w.-]+", line)) and is_missing(word.group())]
    return f"{COMFYUI} needs what is not installed here: {', '.join(missing)}" if missing else None


def pytest_ignore_collect(collection_path):
    """Files of tests that import ComfyUI at their top cannot even be read without it."""
    if ROOT / "tests/comfyui" in collection_path.parents and why_no_comfyui():
        return True


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    ran = sum(report.when == "call" and report.nodeid.startswith("tests/comfyui/") for report in reports)
    reason = why_no_comfyui()
    terminalreporter.write_line(
        f"Tests in ComfyUI: none, {reason}" if reason else f"Tests in ComfyUI: {ran}, in {COMFYUI}"
    )
