import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")

# `python -m pytest` puts the checkout on the path; there `nodes` would be ours and not ComfyUI's.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]


def installed_folder():
    """Return where `import stillmotion` would look, without doing it; None where it is not installed."""
    spec = find_spec("stillmotion")
    return spec and Path(spec.origin).resolve().parent


if (found := installed_folder()) not in (ROOT, ROOT / "stillmotion"):  # the second: the shim, on somebody's PYTHONPATH
    sys.exit(
        f"These tests are of {ROOT}, but `import stillmotion` finds {found or 'nothing'} in this environment:"
        f' run `pip install -e ".[trainer,test]"` in {ROOT}, or use the environment that was made for it'
    )


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=1, help="times the number of damaged inputs in tests/test_fuzz.py")


LONGEST_FIRST = "http", "processes", "tests/trainer", "tests/comfyui", ""


def group_of(nodeid):
    """Tests of one file, or of those that share what takes long to start: pytest-xdist leaves them in one process."""
    path = nodeid.partition("::")[0]
    if path.startswith("tests/comfyui/http/"):
        return "http"
    return "processes" if path.endswith(("_processes.py", "test_fsdp.py")) else path


def pytest_collection_modifyitems(items):
    """What takes longest comes first, so that processes end together."""

    def place(item):
        return next(k for k, start in enumerate(LONGEST_FIRST) if group_of(item.nodeid).startswith(start))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    config.option.loadscopereorder = False  # it would put first what has most tests
    return Groups(config, log)


@pytest.fixture(autouse=True)
def seed():
    import torch  # here, so that what is above is said at once

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
