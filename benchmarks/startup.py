"""How long the programs take to answer --help.

    python -m benchmarks.startup [--json]

There is no baseline: the original imports torch first, and does not import today.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.corpus import REPOSITORY
from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main

PROGRAMS = ("pretrain_glm.py", "finetune_glm.py", "generate_samples.py", "change_mp.py")


def measure() -> Sequence[Row]:
    """Return a row per program."""

    def start(program: str) -> None:
        subprocess.run([sys.executable, program, "--help"], cwd=REPOSITORY, check=True, capture_output=True)

    return [compare(f"{program} --help", lambda program=program: start(program)) for program in PROGRAMS]


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
