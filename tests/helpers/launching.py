"""Start programs as a user does, in one process or several, read what they measured, and source shell files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.helpers import REPOSITORY

MEASURED_TIMES = {
    "elapsed_ms", "tokens_per_second", "real_tokens_per_second", "waiting_share", "memory_bytes", "mfu",
}  # fmt: skip


def environment() -> dict[str, str]:
    """Return the environment of a test's processes: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(program: str, *words: str, ranks: int = 1) -> list[str]:
    """Return the command line of ``program``, under torchrun when there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, str(REPOSITORY / program), *words]


def start(program: str, *words: str, cwd: Path, ranks: int = 1, **options: Any) -> subprocess.Popen[str]:
    """Start ``program`` with its output, errors included, in one pipe."""
    return subprocess.Popen(
        command(program, *words, ranks=ranks),
        cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        **options,
    )  # fmt: skip


def run(program: str, *words: str, cwd: Path, ranks: int = 1, code: int = 0, **options: Any) -> str:
    """Run ``program`` to its end and return its output; assert its exit code."""
    process = start(program, *words, cwd=cwd, ranks=ranks, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the first line of the output that matches; fail when the process ends before."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no line with {pattern!r} in:\n{''.join(seen)}")


def workers(launcher: int, program: str) -> list[psutil.Process]:
    """Return the processes of ``program`` that the launcher started, in the order of their ranks."""
    children = psutil.Process(launcher).children(recursive=True)
    found = [child for child in children if any(program in word for word in child.cmdline())]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def metrics(summary: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics file without what depends on the clock."""
    lines = (summary / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED_TIMES} for line in lines]


def losses(summary: Path, name: str) -> list[float]:
    """Return the loss of every logged update."""
    return [row["loss"] for row in metrics(summary, name) if row["kind"] == "train"]


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
