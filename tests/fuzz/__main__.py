"""Fuzz the readers of files: damage small inputs, and accept only the intact result or one line.

    python -m tests.fuzz SURFACE --seconds 60        as long as that
    python -m tests.fuzz SURFACE --inputs 1000       as many as that
    python -m tests.fuzz all --inputs 10000          spread over all surfaces, and a table
    python -m tests.fuzz kills --number 60           programs killed at random moments (tests/fuzz/kills.py)

A finding is a traceback, more than 10 seconds, more than 1 GB, a line that names no file, and, where files have
checksums, another result without a word. It is printed with the command that gives it again; its files are kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

SURFACE_HELP = "corpus, store, ... (an unknown one lists them), all, or kills"


def main() -> int:
    """Run the command; 1 when something was found."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("surface", help=SURFACE_HELP)
    parser.add_argument("--seconds", type=float, help="for each surface")
    parser.add_argument("--inputs", type=int, help="in all")
    parser.add_argument("--number", type=int, default=60, help="of kills (60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kept", type=Path, help="folder of the files of findings (default: a temporary one)")
    values = parser.parse_args()
    if values.surface == "kills":
        from tests.fuzz.kills import kill_programs

        return kill_programs(values.number, seed=values.seed)
    from tests.fuzz.running import fuzz, show, table, unlike
    from tests.fuzz.surfaces import SURFACES

    logging.getLogger("glm").addHandler(logging.NullHandler())
    logging.getLogger("glm").propagate = False
    if values.surface != "all" and values.surface not in SURFACES:
        print(f"error: {values.surface}: no such surface; there are {', '.join(SURFACES)}, all, kills", file=sys.stderr)
        return 2
    surfaces = list(SURFACES) if values.surface == "all" else [values.surface]
    inputs = values.inputs if values.inputs is not None or values.seconds is not None else 1000
    kept = values.kept or Path(tempfile.mkdtemp(prefix="glm-fuzz-findings-"))
    reports = {}
    for number, surface in enumerate(surfaces):
        share = None if inputs is None else inputs // len(surfaces) + (number < inputs % len(surfaces))
        reports[surface] = fuzz(
            surface, inputs=share, seconds=values.seconds, seed=values.seed, kept=kept, first=values.first
        )
        for finding in unlike(reports[surface].findings):
            print(*show(finding, seed=values.seed), sep="\n", flush=True)
    print(*table(reports), sep="\n", flush=True)
    return int(any(report.findings for report in reports.values()))


if __name__ == "__main__":
    sys.exit(main())
