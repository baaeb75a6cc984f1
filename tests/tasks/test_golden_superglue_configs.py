"""The shipped task, model and DeepSpeed settings: configs.json against the files of config_tasks/."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from tests.helpers.launching import source

LISTS = {"PATTERN_IDS", "PROMPT_IDS"}
# What comes from other files stands for itself.
ENVIRONMENT = {name: f"${{{name}}}" for name in ("MODEL_TYPE", "DATA_ROOT", "CHECKPOINT_PATH")}


def as_recorded(text: str, expected: Any, name: str) -> Any:
    """Return a variable in the type of the recorded value."""
    if name in LISTS:
        return [int(word) for word in text.split()]
    return shlex.split(text) if isinstance(expected, list) else type(expected)(text)


def check(files: dict[str, dict[str, Any]], folder: Path):
    for file, variables in files.items():
        wanted = {name: value for name, value in variables.items() if value != []}
        found = source(folder / f"{file}.sh", wanted, **ENVIRONMENT)
        for name, expected in wanted.items():
            value = as_recorded(found[name].replace(f"{folder.parent}/", ""), expected, name)
            if isinstance(expected, list) and name not in LISTS:  # one file names the storage of the original cluster
                expected = [word.replace("${SITE}/checkpoints", "${CHECKPOINT_PATH}") for word in expected]
            assert value == expected, (file, name)


def test_configurations(golden, repository):
    content = golden.json("superglue/configs.json")
    assert set(content) == {"tasks", "models", "deepspeed"}
    folder = repository / "config_tasks"
    check(content["tasks"], folder)
    check(content["models"], folder)
    for name, expected in content["deepspeed"].items():
        assert json.loads((folder / name).read_text(encoding="utf-8")) == expected, name
