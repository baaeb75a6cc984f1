"""Run one benchmark: python -m benchmarks SUBJECT [--json] [its own flags]

    python -m benchmarks                     the subjects
    python -m benchmarks packing             its rows: ours, the baseline, their ratio, whether the results are equal
    python -m benchmarks packing --json      the same as one JSON list
    python -m benchmarks mfu --help          what a program of its own takes
    python -m benchmarks table FILE ...      put such lists into the table of benchmarks/README.md (--afresh: alone)

``bash benchmarks/run.sh`` runs all that need no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.harness import Row, table, write_into_readme
from files.errors import run_main
from files.reading import read_json

# Subjects by module, where a function of that name returns the rows.
ROWS = {
    "train_step": "training", "finetune_step": "training", "shared_rows": "training", "scaling": "training",
    "generate": "decoding", "generate_memory": "decoding", "choices": "decoding", "evaluate": "decoding",
    "evaluate_lm": "decoding",
    "collator": "preparation", "packing": "preparation", "tokenize": "preparation", "startup": "preparation",
}  # fmt: skip
# Programs with flags of their own: a function of that name takes them.
PROGRAMS = {
    "mfu": "utilisation", "record": "utilisation", "decode_bandwidth": "utilisation", "checkpoint": "checkpoint",
    "ablation": "ablation", "infilling": "infilling.command", "few_shots": "few_shots", "gpu_check": "gpu_check",
}  # fmt: skip


def subject(name: str):
    """Return the function of a subject."""
    return getattr(importlib.import_module(f"benchmarks.{(ROWS | PROGRAMS)[name]}"), name)


def report(rows: Sequence[Row], *, as_json: bool) -> int:
    """Print the rows; the exit code is 1 when results differ."""
    print(json.dumps([asdict(row) for row in rows]) if as_json else "\n".join(table(rows)))
    return 1 if any(row.equal is False for row in rows) else 0


def write_table(argv: Sequence[str]) -> int:
    """Merge lists of rows into the README and print its table."""
    parser = argparse.ArgumentParser(description="Write results into benchmarks/README.md.")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--afresh", action="store_true", help="drop the rows of work that was not measured this time")
    values = parser.parse_args(argv)
    try:
        rows = [Row(**row) for file in values.results for row in read_json(file, list)]
    except TypeError as error:
        raise ValueError(
            f"{', '.join(map(str, values.results))}: not rows of python -m benchmarks NAME --json ({error})"
        ) from None
    print("\n".join(write_into_readme(rows, afresh=values.afresh)))
    return 1 if any(row.equal is False for row in rows) else 0


def main() -> int:
    """Run the subject that is named."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\nRows: {', '.join(ROWS)}\nPrograms: {', '.join(PROGRAMS)}")
        return 0
    if name == "table":
        return write_table(rest)
    if name not in ROWS | PROGRAMS:
        raise ValueError(f"{name}: no such benchmark; there are {', '.join([*ROWS, *PROGRAMS])}")
    measure = subject(name)
    if name in PROGRAMS:
        return measure(rest)
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}", description=inspect.getdoc(measure),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    values = parser.parse_args(rest)
    return report(measure(), as_json=values.json)


if __name__ == "__main__":
    run_main(main)
