"""Rows of benchmarks: who is called how often, what the table says, what the README keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from benchmarks.__main__ import PROGRAMS, ROWS, report, subject
from benchmarks.harness import (
    REPOSITORY,
    Limits,
    Row,
    compare,
    merged,
    peak_memory,
    seconds_in_turn,
    summarize,
    table,
)

ROW = Row("work", 0.5, 0.1, baseline=1.0, ratio=2.0, equal=True, goal=3.0)


@pytest.mark.parametrize(("warm", "calls"), [(False, 4), (True, 3)])
def test_both_sides_are_called_in_turn(warm: bool, calls: int):
    seen: list[str] = []
    row = compare(
        "name", lambda: seen.append("ours"), lambda: seen.append("baseline"), repeats=3, warm=warm, goal=2.0, unit="x"
    )
    assert seen == ["ours", "baseline"] * calls
    assert (row.work, row.goal, row.unit) == ("name", 2.0, "x") and row.ours > 0 and row.baseline > 0


def test_times_of_several_works_are_kept_apart():
    seen: list[int] = []
    times = seconds_in_turn([lambda number=number: seen.append(number) for number in range(3)], repeats=2)
    assert seen == [0, 1, 2] * 3 and [len(one) for one in times] == [2, 2, 2]


def test_a_ratio_is_the_median_over_the_pairs():
    row = summarize("name", [1.0, 2.0, 4.0], [10.0, 4.0, 12.0], amount=8, unit="tokens/s")
    assert (row.ours, row.baseline, row.ratio, row.rate) == (2.0, 10.0, 3.0, 4.0)


def test_a_recorded_rate_is_compared_with_the_rate():
    row = summarize("name", [2.0], amount=8, unit="samples/s", recorded_rate=2.0)
    assert (row.rate, row.ratio, row.baseline, row.spread) == (4.0, 2.0, None, 0.0)


def test_the_table_shows_goals_of_time_and_of_memory():
    (line,) = table([replace(ROW, memory_ratio=0.4, memory_goal=0.42)])[2:]
    assert line == "| work | 500 ms ± 10 % | 1.00 s | **2.00** | 3 | 0.40 (goal 0.42) |  |  | yes |"
    assert "| 0.40 |" in table([replace(ROW, memory_ratio=0.4)])[2]
    assert "| 60 % | yes |" in table([replace(ROW, limit=0.3)])[2]
    assert "| NO |" in table([replace(ROW, equal=False)])[2]


def test_new_rows_replace_those_of_the_same_work():
    other = replace(ROW, work="other")
    lines = merged(table([ROW, other]), table([replace(ROW, ours=0.25)]))
    assert lines == table([replace(ROW, ours=0.25), other])


def test_a_table_of_other_columns_is_not_mixed_with():
    assert merged(["| work | equal |", "|---|---|", "| old | yes |"], table([ROW])) == table([ROW])


def test_what_the_processor_reaches_bounds_a_time():
    limits = Limits({torch.float32: 100.0, torch.bfloat16: 200.0}, bandwidth=10.0)
    assert limits.seconds(operations=300, dtype=torch.float32) == 3.0
    assert limits.seconds(operations=300, dtype=torch.bfloat16, num_bytes=40) == 4.0
    measured = Limits.measure()
    assert measured.bandwidth > 0 and all(rate > 0 for rate in measured.operations.values())


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (None, 0), (False, 1)])
def test_different_results_are_an_error(equal: bool | None, code: int, capsys):
    row = replace(ROW, equal=equal)
    assert report([row], as_json=True) == code
    assert [Row(**entry) for entry in json.loads(capsys.readouterr().out)] == [row]
    assert asdict(row)["equal"] is equal


def touch(megabytes: int):
    """Return a function that needs so much memory for a moment."""

    def work() -> None:
        np.ones(megabytes << 20, dtype=np.uint8)

    return work


def test_peak_memory_is_that_of_a_moment():
    assert 56 << 20 < peak_memory(touch, 64) < 96 << 20


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_every_benchmark_of_the_list_is_there():
    script = (REPOSITORY / "benchmarks" / "run.sh").read_text(encoding="utf-8")
    (names,) = [line.split("--", 1)[1].split() for line in script.splitlines() if line.strip().startswith("set -- ")]
    assert names and set(names) == set(ROWS)
    for name in ROWS | PROGRAMS:
        assert callable(subject(name)) and subject(name).__doc__


def test_the_command_line():
    assert "packing" in run().stdout
    assert "--json" in run("packing", "--help").stdout
    assert "--questions" in run("record", "--help").stdout
    assert run("nothing", code=2).stderr.startswith("error: nothing: no such benchmark")
    (row,) = json.loads(run("packing", "--json").stdout)
    assert row["work"] == "packing" and row["unit"] == "samples/s" and row["ratio"] > 0
