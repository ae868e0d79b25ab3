"""Imports point down, stay relative, and each library stays in the folder that it belongs to."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "networks": {"networks"},
    "samplers": {"samplers", "networks"},
    "nodes": {"nodes", "samplers", "networks"},
    "trainer": {"trainer", "samplers", "networks"},
}
LIBRARIES = {
    "networks": "torch einops safetensors".split(),
    "samplers": "torch einops".split(),
    "nodes": (
        "torch einops safetensors numpy PIL comfy comfy_api comfy_extras folder_paths latent_preview node_helpers "
        "comfy_execution cv2"
    ).split(),
    "trainer": (
        "torch einops safetensors numpy PIL av cv2 tqdm pydantic pydantic_core "
        "accelerate bitsandbytes diffusers open_clip peft tensorboard transformers webdataset"
    ).split(),
}
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def imports_of(file):
    """(dots, module) of every import in a file; `from . import x` counts as `x`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def reached_folder(file, dots, module):
    """The top folder of the package that a relative import leads to."""
    folder = file.parents[dots - 1].relative_to(ROOT)
    return (folder / module.replace(".", "/")).parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_down_and_libraries_stay_in_their_folder(file):
    layer = file.relative_to(ROOT).parts[0]
    for dots, module in imports_of(file):
        top = module.partition(".")[0]
        if dots:
            assert reached_folder(file, dots, module) in LAYERS[layer], f"{layer} must not import {module}"
        elif file == ROOT / "trainer/__main__.py":
            assert module in ("sys", "stillmotion.trainer.cli")
        else:
            assert top in {*LIBRARIES[layer], *sys.stdlib_module_names}, f"{layer} must not import {module}"


def test_comfy_api_is_imported_in_one_file_only():
    users = [file for file in FILES if any(module.startswith("comfy_api") for _, module in imports_of(file))]
    assert {file.relative_to(ROOT).as_posix() for file in users} <= {"nodes/compat.py"}


def test_no_node_loads_opencv_at_comfyuis_start():
    for file in (ROOT / "nodes").glob("*.py"):
        imports = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
        assert "cv2" not in {alias.name for node in imports for alias in node.names}, file.name


def test_every_layer_is_found():
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == {name for name in LAYERS if (ROOT / name).is_dir()}


@pytest.mark.parametrize(
    "line, folder",
    [
        ("from ..trainer.cli import main", "trainer"),
        ("from .. import trainer", "trainer"),
        ("from .sites import Site", "networks"),
        ("from . import sites", "networks"),
    ],
)
def test_where_a_relative_import_leads(line, folder):
    node = ast.parse(line).body[0]
    module = node.module or node.names[0].name
    assert reached_folder(ROOT / "networks/clip.py", node.level, module) == folder
