"""Source the shell files of ``config/`` and ``config_tasks/`` in a real bash and read the variables they define."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import REPOSITORY

# Prints every variable named after the file; an array as its elements between blanks. An undefined one is an error.
SCRIPT = """
set -eu
source "$1"; shift
for name in "$@"; do
    declare -n variable="$name"
    printf '%s\\0' "${variable[*]}"
done
"""


def source(file: Path, names: Iterable[str], **environment: str) -> dict[str, str]:
    """Return the variables ``names`` after sourcing ``file`` from the repository's top with only ``environment``.

    Raises AssertionError with what bash says when the file fails or does not define one of them.
    """
    names = list(names)
    run = subprocess.run(
        ["bash", "-c", SCRIPT, "-", str(file), *names],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, f"{file}: {run.stderr}"
    return dict(zip(names, run.stdout.split("\0")[:-1], strict=True))
