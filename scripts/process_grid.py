"""Summarize the results of many fine-tuning runs.

    python scripts/process_grid.py 'runs/blocklm-base-rte/*' table         every run, then mean and deviation
    python scripts/process_grid.py 'runs/blocklm-base-rte/*' max accuracy  the folder with the highest accuracy
    python scripts/process_grid.py 'runs/blocklm-base-rte/*' mean          of every metric (or: median)

Reads ``results.json`` of every folder that matches the pattern (``**`` crosses folders).
"""

from __future__ import annotations

import argparse
import glob
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from files.errors import run_main
from files.reading import read_json, value_of

NOT_METRICS = ("type", "epoch", "limit")
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"mean": statistics.fmean, "median": statistics.median}


def read_results(pattern: str) -> dict[str, dict[str, Any]]:
    """Return {folder: content of its results.json}; report folders without it, and those without test results.

    Raises ValueError when no folder matches or none has results.
    """
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    # A link to the newest run of a name is not a run of its own, unless it is what was asked for.
    folders = [path for path in found if path.is_dir() and (len(found) == 1 or not path.is_symlink())]
    results: dict[str, dict[str, Any]] = {}
    for folder in folders:
        file = folder / "results.json"
        if not file.is_file():
            print(f"{folder}: no results.json")
            continue
        results[str(folder)] = checked_results(file)
        if not (folder / "test_results.json").is_file():
            print(f"{folder}: no test_results.json, the run is not finished")
    if not results:
        raise ValueError(f"{pattern}: {len(folders)} folders, none with a results.json; quote the pattern")
    return results


def checked_results(file: Path) -> dict[str, Any]:
    """Return the content of a results.json; raise ValueError when it is damaged or a metric is no number."""
    results: dict[str, Any] = read_json(file)
    for name in metrics_of(results):
        value_of(results, name, float, place=str(file))
    return results


def metrics_of(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in results.items() if name not in NOT_METRICS}


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of all runs, their mean and their standard deviation.

    Raises ValueError when the runs have other metrics.
    """
    rows = {folder: metrics_of(content) for folder, content in results.items()}
    names = list(next(iter(rows.values())))
    for folder, row in rows.items():
        if set(row) != set(names):
            raise ValueError(f"{folder} has {', '.join(row)}, the first run {', '.join(names)}; summarize them apart")
    columns = {name: [row[name] for row in rows.values()] for name in names}
    rows["mean"] = {name: statistics.fmean(values) for name, values in columns.items()}
    rows["deviation"] = {name: statistics.pstdev(values) for name, values in columns.items()}
    width = max(map(len, rows)) + 2
    lines = [" " * width + "".join(f"{name:>12}" for name in names)]
    lines += [f"{folder:<{width}}" + "".join(f"{row[name]:>12.4f}" for name in names) for folder, row in rows.items()]
    return lines


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="glob of run folders")
    parser.add_argument("what", choices=("max", "table", *STATISTICS))
    parser.add_argument("metric", nargs="?", help="for max")
    arguments = parser.parse_args()
    results = read_results(arguments.pattern)
    if arguments.what == "table":
        print(*table(results), sep="\n")
    elif arguments.what == "max":
        if not arguments.metric or any(arguments.metric not in content for content in results.values()):
            known = ", ".join(metrics_of(next(iter(results.values()))))
            raise ValueError(f"max needs a metric that every run has: {known} (given: {arguments.metric})")
        best = max(results, key=lambda folder: results[folder][arguments.metric])
        print(best, json.dumps(results[best]))
    else:
        table(results)  # refuses other metrics
        metrics, statistic = list(map(metrics_of, results.values())), STATISTICS[arguments.what]
        print(json.dumps({name: statistic([run[name] for run in metrics]) for name in metrics[0]}))
    return 0


if __name__ == "__main__":
    run_main(main)
