"""Run many damaged inputs of a surface in worker processes with bounded memory, and report."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.fuzz.judging import SECONDS, Judge, Verdict, last_lines
from tests.fuzz.surfaces import SURFACES, Case, write_files

MEMORY = 1 << 30  # bytes that a worker may ask for beside what it has at its start
WATCHDOG = 2 * SECONDS  # for what no signal stops
SHOWN = 40  # findings of a surface that are kept; the rest is counted


class Finding(NamedTuple):
    """A finding, and where its input lies."""

    surface: str
    number: int
    case: str
    verdict: Verdict
    folder: Path


class Report(NamedTuple):
    """What came of a surface: counts by kind, findings, seconds, and the memory of its workers at most (bytes)."""

    counts: Counter[str]
    findings: list[Finding]
    seconds: float
    memory: int


def input_of(surface: str, cases: list[Case], seed: int, number: int) -> tuple[Case, random.Random]:
    """Return the case of an input and the generator of its damage."""
    generator = random.Random(f"{surface} {seed} {number}")
    return cases[generator.randrange(len(cases))], generator


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(connection: Connection, surface: str, cases: list[Case], seed: int, first: int, kept: Path) -> None:
    """Judge inputs ``first``, ``first + 1`` ... until the connection closes; one message before and after each."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    before, folder = _peak(), Path(tempfile.mkdtemp(prefix="glm-fuzz-"))
    judges: dict[str, Judge] = {}
    try:
        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        number = first
        while True:
            case, generator = input_of(surface, cases, seed, number)
            try:
                if case.name not in judges:
                    judges[case.name] = Judge(case, folder / "input")
                judge = judges[case.name]
                files, what = judge.damage(generator)
            except Exception:
                verdict = Verdict("finding", "nothing: the intact files", last_lines())
                connection.send(("verdict", number, case.name, verdict, _peak() - before))
                number += 1
                continue
            connection.send(("input", number, case.name, what, 0))
            verdict = judge.verdict(files, what)
            if verdict.kind == "finding":
                write_files(kept / f"{surface}-{number}", files)
            connection.send(("verdict", number, case.name, verdict, _peak() - before))
            number += 1
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(surface: str, *, inputs: int | None, seconds: float | None, seed: int, kept: Path, first: int = 0) -> Report:
    """Judge ``inputs`` inputs of a surface, or as many as ``seconds`` allow; findings' files go to ``kept``."""
    cases = list(SURFACES[surface]())
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    number, start, memory = first, time.monotonic(), 0
    context = multiprocessing.get_context("fork")
    worker: Any = None
    while (inputs is None or number - first < inputs) and (seconds is None or time.monotonic() - start < seconds):
        if worker is None:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(sender, surface, cases, seed, number, kept), daemon=True)
            worker.start()
            sender.close()
            name, what = "", ""
        try:
            verdict = None
            if not receiver.poll(WATCHDOG):
                verdict = Verdict("finding", what, f"no signal stops it: more than {WATCHDOG:.0f} s")
            else:
                kind, number, name, content, used = receiver.recv()
                memory = max(memory, used)
                if kind == "input":
                    what = content
                elif kind == "verdict":
                    verdict = content
        except EOFError:
            worker.join()
            verdict = Verdict("finding", what, f"the process ended with {worker.exitcode}")
        if verdict is None:
            continue
        counts[verdict.kind] += 1
        if verdict.kind == "finding":
            findings.append(Finding(surface, number, name, verdict, kept / f"{surface}-{number}"))
            if verdict.detail.startswith(("no signal", "the process ended")):
                worker.kill()
                worker.join()
                worker = None
        number += 1
    if worker is not None:
        receiver.close()
        worker.terminate()
        worker.join()
    return Report(counts, findings, time.monotonic() - start, memory)


def table(reports: dict[str, Report]) -> list[str]:
    """Return the lines of a table of all surfaces."""
    head = ("surface", "inputs", "equal", "other", "refused", "findings", "per minute", "memory (MB)")
    rows = [head]
    total: Counter[str] = Counter()
    for surface, report in reports.items():
        total += report.counts
        rate = 60 * report.counts.total() / max(report.seconds, 1e-9)
        rows.append(_row(surface, report.counts, f"{rate:.0f}", f"{report.memory / 2**20:.0f}"))
    if len(reports) > 1:
        rows.append(_row("all", total, "", f"{max(report.memory for report in reports.values()) / 2**20:.0f}"))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def _row(name: str, counts: Counter[str], rate: str, memory: str) -> tuple[str, ...]:
    numbers = (counts.total(), *(counts[kind] for kind in ("equal", "other", "refused", "finding")))
    return (name, *map(str, numbers), rate, memory)


def show(finding: Finding, *, seed: int) -> list[str]:
    """Return the lines that say what was found, and how to see it again."""
    return [
        f"{finding.surface} {finding.number} ({finding.case}): {finding.verdict.what}"[:300],
        f"    {finding.verdict.detail}",
        f"    python -m tests.fuzz {finding.surface} --seed {seed} --first {finding.number} --inputs 1",
        f"    {finding.folder}",
    ]


def unlike(findings: list[Finding]) -> list[Finding]:
    """Return findings that say different things: one for each place in the code."""
    seen: dict[str, Finding] = {}
    for finding in findings:
        detail = finding.verdict.detail
        place = detail.rsplit(" | ", 2)[-2] if " | " in detail else detail
        seen.setdefault(json.dumps([finding.case if "without a word" in detail else "", place]), finding)
    return list(seen.values())[:SHOWN]
