"""What ships, under which names, and that the checkout works without being installed."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHIM = ROOT / "stillmotion"
CODE = sorted(init.parent for init in ROOT.glob("*/__init__.py") if init.parent != SHIM)
DATA = [folder for folder in (ROOT / "workflows", ROOT / "web", ROOT / "locales") if folder.is_dir()]
PRESETS = [file.relative_to(ROOT).as_posix() for file in (ROOT / "trainer/presets").iterdir()]
MODULES = sorted(file.relative_to(ROOT).as_posix() for folder in CODE for file in folder.rglob("*.py"))


@pytest.fixture
def bare(tmp_path):
    """A copy of the checkout in a folder whose name is no Python name, as `git clone` and ComfyUI-Manager make."""
    copy = tmp_path / "Still-Motion copy"
    for folder in (*CODE, *DATA, SHIM):
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def python(*arguments, folder):
    """Runs Python in a folder, without the .pth files by which an editable install is found."""
    libraries = os.pathsep.join(entry for entry in sys.path if entry)
    result = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": libraries},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_folder_with_code_is_a_listed_package():
    folders = {file.parent for folder in CODE for file in folder.rglob("*.py")}
    names = {"stillmotion." + folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({"stillmotion"} | names)
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_no_other_python_file_at_the_root():
    assert [file.name for file in ROOT.glob("*.py")] == ["__init__.py"]


def test_a_wheel_holds_the_package_and_nothing_beside_it(bare, tmp_path):
    (bare / "tests").mkdir()
    (bare / "tests/test_nothing.py").touch()
    python("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", folder=bare)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {file.relative_to(ROOT).as_posix() for folder in DATA for file in folder.rglob("*") if file.is_file()}
    assert names == {f"stillmotion/{name}" for name in {"__init__.py", *MODULES, *data, *PRESETS}}


def test_python_m_trainer_in_a_bare_checkout(bare):
    assert "fewshot" in python("-m", "trainer", folder=bare)


def test_without_the_trainers_requirements_one_line_says_what_installs_them(bare):
    start = "import runpy, sys; sys.path[:0] = ['.']; runpy.run_module('trainer', run_name='__main__')"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", start], cwd=bare, capture_output=True, text=True)
    said = 'error: pydantic is not installed; pip install -e ".[trainer]" in the checkout installs it\n'
    assert (result.returncode, result.stderr) == (2, said)


def test_workers_started_by_spawn_find_the_bare_checkout(bare):
    (bare / "trainer/cli.py").write_text(
        "import multiprocessing\n"
        "def where(_):\n"
        "    return __file__\n"
        "def main():\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(where, [None])[0])\n"
    )
    assert python("-m", "trainer", folder=bare).strip() == str(bare / "trainer/cli.py")


LOAD_AS_COMFYUI_DOES = """
import importlib.util, sys
name, before = sys.argv[1].replace(".", "_x_"), set(sys.modules)
spec = importlib.util.spec_from_file_location(name, sys.argv[1] + "/__init__.py")
root = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(root)
print(*sorted(set(sys.modules) - before - {name}), root.WEB_DIRECTORY)
assert not hasattr(root, "NODE_CLASS_MAPPINGS")
for module in sys.argv[2:]:
    importlib.import_module(module, name)
assert not {"stillmotion", "networks", "samplers", "trainer"} & set(sys.modules)
"""


def test_comfyui_can_load_it_from_a_folder_with_a_hyphen(bare, tmp_path):
    networks = ["." + name.removesuffix(".py").replace("/", ".") for name in MODULES if name.startswith("networks/")]
    loaded = python("-c", LOAD_AS_COMFYUI_DOES, str(bare), *networks, folder=tmp_path)
    assert loaded.split() == ["./web"], "the root package must import nothing"


def test_an_install_adds_one_name_only(tmp_path):
    find = "import importlib.util as u; print([n for n in ('nodes', 'networks', 'trainer', 'tests') if u.find_spec(n)])"
    result = subprocess.run([sys.executable, "-c", find], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def pytest_in_a_clone(bare, installed, tmp_path):
    """Runs a clone's own pytest where `import stillmotion` finds `installed`, and where torch is a stub."""
    (bare / "tests").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", bare / "tests")
    (bare / "tests/test_nothing.py").write_text("import stillmotion\n\ndef test_nothing():\n    pass\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/stillmotion").symlink_to(installed, target_is_directory=True)
    (tmp_path / "site/torch.py").write_text(
        "import sys\n\nprint('torch', file=sys.stderr)\n\ndef manual_seed(_):\n    pass\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-S", "-m", "pytest", "-q"],
        cwd=bare,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_pytest_refuses_to_test_another_clone_than_the_one_it_lies_in(bare, tmp_path):
    other = tmp_path / "another clone"
    shutil.copytree(bare, other)
    run = pytest_in_a_clone(bare, other, tmp_path)
    (said,) = run.stderr.splitlines()  # torch would have said its name
    assert run.returncode != 0
    assert str(bare) in said and str(other) in said and 'pip install -e ".[trainer,test]"' in said


def test_pytest_tests_the_clone_that_is_installed_by_whichever_path_it_is_found(bare, tmp_path):
    run = pytest_in_a_clone(bare, bare, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout
