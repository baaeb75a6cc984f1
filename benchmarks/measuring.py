"""Measure two ways of computing the same thing in turn, and print them as rows of one table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what was done.
        ours, baseline: median seconds; the baseline is None where there is nothing to compare with.
        spread: half the distance between the quartiles of ours, as a share of its median.
        ratio: baseline / ours, the median over the pairs; of rates, where the baseline is a recorded one.
        memory_ratio: extra peak memory of ours over the baseline's; None where it was not measured.
        rate: ours, in ``unit``.
        recorded_rate: that of the original, recorded elsewhere.
        equal: whether both gave the same result; None where there is nothing to compare.
        goal: the ratio to reach; None without.
        memory_goal: the memory ratio not to exceed; None without.
    """

    work: str
    ours: float
    spread: float
    baseline: float | None = None
    ratio: float | None = None
    memory_ratio: float | None = None
    rate: float | None = None
    recorded_rate: float | None = None
    unit: str = ""
    equal: bool | None = None
    goal: float | None = None
    memory_goal: float | None = None


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    name: str,
    ours: Callable[[], Any],
    baseline: Callable[[], Any] | None = None,
    *,
    repeats: int = 5,
    warm: bool = False,
    **columns: Any,
) -> Row:
    """Call both in turn ``repeats`` times after one warm-up of each; ``columns`` are the keywords of ``summarize``.

    ``warm``: both were called before, for the comparison of their results.
    """
    works = [ours] if baseline is None else [ours, baseline]
    own, *others = seconds_in_turn(works, repeats=repeats, warm=warm)
    return summarize(name, own, others[0] if others else None, **columns)


def seconds_in_turn(works: Sequence[Callable[[], Any]], *, repeats: int, warm: bool = False) -> list[list[float]]:
    """Call all of ``works`` in turn, ``repeats`` times after a warm-up (``warm``: without); return each one's times."""
    if not warm:
        for work in works:
            work()
    turns = [[seconds_of(work) for work in works] for _ in range(repeats)]
    return [list(times) for times in zip(*turns, strict=True)]


def summarize(
    name: str,
    own: Sequence[float],
    other: Sequence[float] | None = None,
    *,
    amount: float | None = None,
    unit: str = "",
    equal: bool | None = None,
    goal: float | None = None,
    memory_ratio: float | None = None,
    memory_goal: float | None = None,
    recorded_rate: float | None = None,
) -> Row:
    """Return the row of times that were taken in turn, each of ``amount`` ``unit``s.

    Where there is no baseline to run, ``recorded_rate`` is one to compare the rate with.
    """
    median = statistics.median(own)
    rate = None if amount is None else amount / median
    ratio = None if other is None else statistics.median(b / a for a, b in zip(own, other, strict=True))
    if recorded_rate is not None:
        assert rate is not None and other is None, name
        ratio = rate / recorded_rate
    quartiles = statistics.quantiles(own, n=4) if len(own) > 1 else [median] * 3
    return Row(
        work=name,
        ours=median,
        spread=(quartiles[2] - quartiles[0]) / 2 / median,
        baseline=None if other is None else statistics.median(other),
        ratio=ratio,
        memory_ratio=memory_ratio,
        rate=rate,
        recorded_rate=recorded_rate,
        unit=unit,
        equal=equal,
        goal=goal,
        memory_goal=memory_goal,
    )


class OwnProcess:
    """A function that is made, and called, in a fresh process: what it changes in its process stays there.

    ``make(*arguments)`` returns the function; it has to live at the top level of a module. Between calls the process
    waits, so that it can be measured in turn with others.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_answer_calls, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def __call__(self) -> Any:
        """Call the function and return its result."""
        self._connection.send("call")
        return self._connection.recv()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _answer_calls(connection: Connection, make: Callable[..., Callable[[], Any]], arguments: Sequence[Any]) -> None:
    work = make(*arguments)
    try:
        while connection.recv():
            connection.send(work())
    except EOFError:  # closed
        return


def peak_memory(work: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Return the bytes by which a fresh process grows at most while it calls ``work(*arguments)()`` twice.

    What ``work`` builds (weights) counts; the modules it imports do not. It has to live at the top level of a module.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_report_peak, args=(queue, work, arguments))
    process.start()
    found = queue.get()
    process.join()
    return found


def _report_peak(queue: Any, work: Callable[..., Callable[[], Any]], arguments: Sequence[Any]) -> None:
    empty = status("VmRSS")
    measured = work(*arguments)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of building
    for _ in range(2):
        measured()
    queue.put(status("VmHWM") - empty)


def status(field: str) -> int:
    """Return a field of this process's memory in bytes, such as VmRSS (now) or VmHWM (the peak)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines of a Markdown table."""
    lines = ["| work | ours | baseline | ratio | goal | memory | rate | equal |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (
            row.work,
            f"{_seconds(row.ours)} ± {100 * row.spread:.0f} %",
            _baseline(row),
            "" if row.ratio is None else f"**{row.ratio:.2f}**",
            "" if row.goal is None else f"{row.goal:g}",
            _memory(row),
            "" if row.rate is None else f"{row.rate:,.0f} {row.unit}",
            "" if row.equal is None else ("yes" if row.equal else "NO"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _baseline(row: Row) -> str:
    if row.recorded_rate is not None:
        return f"{row.recorded_rate:,.0f} {row.unit} (recorded)"
    return "" if row.baseline is None else _seconds(row.baseline)


def _memory(row: Row) -> str:
    if row.memory_ratio is None:
        return ""
    return f"{row.memory_ratio:.2f}" + ("" if row.memory_goal is None else f" (goal {row.memory_goal:g})")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def report(measure: Callable[[], Sequence[Row]], *, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Parse ``[--json]``, measure, print the rows; the exit code is 1 when results differ."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    as_json = parser.parse_args(argv).json
    rows = measure()
    print(json.dumps([asdict(row) for row in rows]) if as_json else "\n".join(table(rows)))
    return 1 if any(row.equal is False for row in rows) else 0
