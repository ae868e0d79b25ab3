"""Imports point down, stay relative, and each library stays in the folder that it belongs to."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
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
    "samplers": "torch einops kornia numpy cv2".split(),
    "nodes": (
        "torch einops safetensors numpy PIL comfy comfy_api comfy_extras folder_paths latent_preview node_helpers "
        "comfy_execution cv2 server"
    ).split(),
    "trainer": (
        "torch einops safetensors numpy PIL av cv2 tqdm pydantic pydantic_core "
        "accelerate bitsandbytes diffusers open_clip peft tensorboard transformers webdataset yaml"
    ).split(),
}
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


FLOORS = (
    ("__main__", "cli"),
    ("commands",),
    ("toy", "measures"),
    ("run",),
    ("losses",),
    ("clips",),
    ("base", "show", "options"),
    ("config",),
)
"""The rooms of the trainer, and its files that are in none, from the top down; those of one floor are strangers."""


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


def reached_file(file, dots, module):
    """The file of the package that a relative import leads to; the folder where it names a whole package."""
    path = file.parents[dots - 1] / module.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path


def room_of(path):
    return path.relative_to(ROOT / "trainer").parts[0].removesuffix(".py")


def floor_of(room):
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def upward(arrows):
    """Of arrows between files of the trainer, those between rooms that do not run down."""
    rooms = [(file, to, room_of(file), room_of(to)) for file, to in arrows]
    return [(file, to) for file, to, a, b in rooms if a != b and floor_of(a) >= floor_of(b)]


def circle_in(arrows):
    """Files that import one another in a circle, or nothing."""
    try:
        TopologicalSorter({file: {to for a, to in arrows if a == file} for file, _ in arrows}).prepare()
    except CycleError as error:
        return error.args[1]


def arrows_between(files):
    return [(file, reached_file(file, dots, module)) for file in files for dots, module in imports_of(file) if dots]


def test_no_arrow_between_the_trainers_rooms_runs_up():
    trainer = [file for file in FILES if file.relative_to(ROOT).parts[0] == "trainer" and file.name != "__init__.py"]
    arrows = [(file, to) for file, to in arrows_between(trainer) if ROOT / "trainer" in to.parents]
    assert {room_of(file) for file in trainer} == {room for floor in FLOORS for room in floor}
    assert len(arrows) > 100 and not upward(arrows)


def test_no_files_import_one_another_in_a_circle():
    assert circle_in(arrows_between(FILES)) is None


def test_an_upward_arrow_and_a_circle_are_found():
    loop, cli, batches, find = (
        ROOT / "trainer" / name for name in ("run/loop.py", "cli.py", "clips/batches.py", "clips/find.py")
    )
    assert upward([(loop, batches), (batches, loop), (batches, find), (loop, cli)]) == [(batches, loop), (loop, cli)]
    assert upward([(ROOT / "trainer/base/load.py", ROOT / "trainer/show/pictures.py")])
    assert circle_in([(find, batches), (loop, find), (batches, loop)]) and not circle_in(
        [(loop, find), (find, batches)]
    )


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
    for file in [*(ROOT / "nodes").glob("*.py"), *(ROOT / "samplers").glob("*.py")]:
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
