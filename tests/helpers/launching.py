"""Start the programs as a user does, in one process or several, and read what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

MEASURED_TIMES = {"elapsed_ms", "tokens_per_second", "memory_bytes", "mfu"}


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


def metrics(summary: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics file without what depends on the clock."""
    lines = (summary / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED_TIMES} for line in lines]
