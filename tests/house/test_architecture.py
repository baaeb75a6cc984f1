"""The floors of the house: a room imports only rooms below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Which of our rooms and entry points each room may import (itself always).
MAY_IMPORT = {
    "mpu": set(),
    "data_utils": set(),
    "model": {"mpu"},
    "generation": {"model", "mpu", "data_utils"},
    "training": {"model", "mpu", "data_utils"},
    "change_mp": {"model", "mpu", "data_utils"},
    "scripts": {"model", "mpu", "data_utils"},
    "tasks": {"generation", "training", "model", "mpu", "data_utils"},
    "generate_samples": {"generation", "training", "model", "mpu", "data_utils"},
    "pretrain_glm": {"tasks", "training", "model", "mpu", "data_utils"},
    "finetune_glm": {"tasks", "training", "model", "mpu", "data_utils"},
}
EVERY_ROOM = set(MAY_IMPORT)
TOP_LEVEL = {
    "pretrain_glm.py", "finetune_glm.py", "generate_samples.py", "change_mp.py", "finetune_mt5.py", "mt5",
    "model", "mpu", "data_utils", "tasks", "config", "config_tasks", "scripts", "docker", "requirements.txt",
    "README.md", "README.zh-CN.md", "training", "generation", "tests", "benchmarks", "docs", "pyproject.toml",
    ".ci", ".gitignore", "LICENSE",
}  # fmt: skip
# Made by running things, never committed.
GENERATED = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis", "build", "dist", "__pycache__",
             "checkpoints", "runs", "logs", "samples", "quickstart", "data"}  # fmt: skip


def source_files() -> list[Path]:
    """Return every Python file outside the tests and benchmarks."""
    files = []
    for room in sorted(EVERY_ROOM):
        if (REPOSITORY / room).is_dir():
            files += sorted((REPOSITORY / room).rglob("*.py"))
        elif (REPOSITORY / f"{room}.py").is_file():
            files.append(REPOSITORY / f"{room}.py")
    return files


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of ours that a file imports, lazily or not."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            rooms.add(node.module.split(".")[0])
    return rooms & EVERY_ROOM


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_imports_point_downwards(path: Path):
    room = path.relative_to(REPOSITORY).parts[0].removesuffix(".py")
    upward = imported_rooms(path) - MAY_IMPORT[room] - {room}
    assert not upward, f"{room} may not import {sorted(upward)}"


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(REPOSITORY).as_posix())
def test_files_stay_small(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 125 if path.parent == REPOSITORY else 500
    assert lines <= limit, f"{lines} lines: split by concept (limit {limit})"


def test_nothing_else_at_the_top_level():
    names = {p.name for p in REPOSITORY.iterdir()} - GENERATED
    extra = {n for n in names - TOP_LEVEL if not n.endswith(".egg-info")}
    assert not extra, f"unexpected at the top level: {sorted(extra)}"
