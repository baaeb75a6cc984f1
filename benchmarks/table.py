"""Write the results of benchmarks into the table of benchmarks/README.md.

    python -m benchmarks.table RESULTS.json [...] [--afresh]

Rows of work that was not measured this time are kept, unless the table is written afresh.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import Row, table
from data_utils.errors import run_main
from data_utils.whole_files import write_whole

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: begin (bash benchmarks/run.sh) -->", "<!-- table: end -->"


def machine() -> str:
    """Return the processor, the number of cores, torch and the day."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    today = datetime.date.today().isoformat()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}, {today}"


def merged(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the lines of ``old`` (a table) with those of ``new`` in place of the ones about the same work."""
    rows = {line.split("|")[1].strip(): line for line in old[2:]}
    rows |= {line.split("|")[1].strip(): line for line in new[2:]}
    return [*new[:2], *rows.values()]


def main() -> int:
    """Merge the results into the README and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--afresh", action="store_true", help="drop the rows of work that was not measured this time")
    values = parser.parse_args()
    rows = [Row(**row) for file in values.results for row in json.loads(file.read_text(encoding="utf-8"))]
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{README} lacks the lines {BEGIN} and {END}; put them where the table goes")
    before, rest = text.split(BEGIN)
    present, after = rest.split(END)
    old = [] if values.afresh else [line for line in present.splitlines() if line.startswith("|")]
    lines = merged(old, table(rows))
    content = "\n".join([f"{before}{BEGIN}", "", f"Last run: {machine()}.", "", *lines, "", f"{END}{after}"])
    write_whole(README, content)
    print("\n".join(lines))
    return 1 if any(row.equal is False for row in rows) else 0


if __name__ == "__main__":
    run_main(main)
