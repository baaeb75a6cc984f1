"""The shell scripts: they parse, they end in one launcher call, and user mistakes end in one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_is_valid_bash(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_quickstart_names_the_unknown_option(repository: Path):
    command = ["bash", "scripts/quickstart.sh", "--datum", "x"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["error: unknown option '--datum'; known are --data, --steps, --output"]
