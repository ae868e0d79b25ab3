"""Benchmarks run by hand: what they import from the package must still be there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def defined_in(file):
    """Names at the top of a module: definitions, assignments, imports."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        else:
            yield from (name.id for name in ast.walk(node) if isinstance(name, ast.Name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file):
    imports = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    for node in imports:
        if node.module.startswith("stillmotion."):
            place = ROOT / node.module.removeprefix("stillmotion.").replace(".", "/")
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            missing = {alias.name for alias in node.names} - set(defined_in(module))
            assert not missing, f"{node.module} has no {', '.join(missing)}"
