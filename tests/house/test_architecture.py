"""The layers: a package imports only packages below it, and no files import each other in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

# Which of our packages and entry points each package may import (itself always).
BELOW_TRAINING = {"model", "mpu", "data_utils", "files"}
BELOW_TASKS = {"generation", "training", *BELOW_TRAINING}
MAY_IMPORT = {
    "files": set(),
    "mpu": {"files"},
    "data_utils": {"files"},
    "model": {"mpu", "files"},
    "generation": BELOW_TRAINING,
    "training": BELOW_TRAINING,
    "change_mp": BELOW_TRAINING,
    "tasks": BELOW_TASKS,
    "generate_samples": BELOW_TASKS,
    "mt5": {"tasks", "training", "data_utils", "files"},
    "finetune_mt5": {"mt5", "files"},
    "pretrain_glm": {"tasks", *BELOW_TASKS},
    "finetune_glm": {"tasks", *BELOW_TASKS},
    "glm_blank_infilling": {"files"},
    "hatch_build": set(),
    "scripts": {"mt5", "tasks", *BELOW_TASKS},
    "benchmarks": {"tasks", "pretrain_glm", "finetune_glm", "generate_samples", "change_mp", *BELOW_TASKS},
}


# Programs that lie in the package they are about, and are run, never imported: they may import what scripts may.
PROGRAMS = {"data_utils/show.py", "data_utils/loader_speed.py"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def production_files() -> list[Path]:
    folders = [package for package in sorted(MAY_IMPORT) if (REPOSITORY / package).is_dir()]
    return sorted(
        [*REPOSITORY.glob("*.py"), *(file for package in folders for file in (REPOSITORY / package).rglob("*.py"))]
    )


def file_of(module: str, importer: Path) -> Path | None:
    """Return our file of a module; files of ``scripts/`` import their neighbours by their bare names."""
    for root in (REPOSITORY, importer.parent):
        path = root.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file() and file.is_relative_to(REPOSITORY):
                return file
    return None


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at its top, inside functions or for annotations only."""
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                inside = f"{module}.{alias.name}"
                yield inside if file_of(inside, path) else module


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Return the files of ours that a file imports."""
    files = {file_of(module, path) for module in imported_modules(path)}
    return frozenset(file for file in files if file is not None and file != path)


def circles(files: list[Path]) -> set[frozenset[str]]:
    """Return the groups of files each of which reaches every other of its group."""
    reached: dict[Path, set[Path]] = {}
    for start in files:
        seen: set[Path] = set()
        waiting = list(imports_of(start))
        while waiting:
            file = waiting.pop()
            if file not in seen:
                seen.add(file)
                waiting += imports_of(file)
        reached[start] = seen
    groups = (frozenset(name_of(b) for b in files if b in reached[a] and a in reached[b]) for a in files)
    return {group for group in groups if group}


def test_every_package_has_its_layer():
    packages = {path.relative_to(REPOSITORY).parts[0].removesuffix(".py") for path in production_files()}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("path", production_files(), ids=name_of)
def test_imports_point_downwards(path: Path):
    package = path.relative_to(REPOSITORY).parts[0].removesuffix(".py")
    imported = {file.relative_to(REPOSITORY).parts[0].removesuffix(".py") for file in imports_of(path)}
    upward = imported - MAY_IMPORT["scripts" if name_of(path) in PROGRAMS else package] - {package}
    assert not upward, f"{package} may not import {sorted(upward)}"


def test_programs_are_imported_by_nobody():
    assert all((REPOSITORY / name).is_file() for name in PROGRAMS)
    imported = {name_of(file) for path in production_files() for file in imports_of(path)}
    assert not imported & PROGRAMS


def test_no_files_import_each_other_in_a_circle():
    assert not circles(production_files())


def test_a_circle_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Through a lazy import, a relative one and a name of a package."""
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    (tmp_path / "package").mkdir()
    contents = {
        "package/__init__.py": "",
        "package/a.py": "from package import b",
        "package/b.py": "def f():\n    from .c import x",
        "package/c.py": "import package.a",
        "package/d.py": "import package.a",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert circles(sorted(tmp_path.rglob("*.py"))) == {frozenset({"package/a.py", "package/b.py", "package/c.py"})}


def test_no_test_imports_another():
    tests = [path for path in sorted((REPOSITORY / "tests").rglob("*.py")) if not {"helpers", "fuzz"} & set(path.parts)]
    modules = {path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".") for path in tests}
    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name == "test_architecture.py":
            continue
        assert not modules & set(imported_modules(path)), name_of(path)
        assert "from tests." not in re.sub("from tests.(helpers|fuzz)", "", text), name_of(
            path
        )  # not in a string, either
