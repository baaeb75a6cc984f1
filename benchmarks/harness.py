"""Measure two ways of computing the same thing in turn, and print them as rows of one table; models and text for it."""

from __future__ import annotations

import datetime
import functools
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pages import markdown_table, read_results, write_results
from data_utils.corpora.store import Document
from data_utils.tokenizers.tokenizer import Tokenizer, word_list_tokenizer
from files.reading import lines_of, parse_json, read_text
from model.config import GLMConfig
from model.released import RELEASED_MODELS, ReleasedModel

REPOSITORY = Path(__file__).resolve().parent.parent
README = Path(__file__).with_name("README.md")
COMMAND = "bash benchmarks/run.sh"  # writes the table of README.md

# The models that are measured by name: the released ones by the NAME of config_tasks/model_blocklm_NAME.sh, in lower
# case, and two that a CPU can run.
_BASE = RELEASED_MODELS["GLM-Base"]
MODELS: dict[str, ReleasedModel] = {
    **{
        released.config_task.removeprefix("model_blocklm_").removesuffix(".sh").lower(): released
        for released in RELEASED_MODELS.values()
    },
    "tiny": replace(_BASE, name="tiny", config=GLMConfig(6, 256, 4, 30592), config_task="model_blocklm_tiny.sh"),
    "small": replace(_BASE, name="small", config=GLMConfig(12, 512, 8, 30592, max_position_embeddings=512)),
}


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
        limit: the seconds that this machine needs at least (``Limits``); None where nobody counted.
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
    limit: float | None = None


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
    return summarize(name, *seconds_in_turn(works, repeats=repeats, warm=warm), **columns)


def seconds_in_turn(works: Sequence[Callable[[], Any]], *, repeats: int, warm: bool = False) -> list[list[float]]:
    """Call all of ``works`` in turn, ``repeats`` times after a warm-up (``warm``: without); return each one's times."""
    if not warm:
        for work in works:
            work()
    turns = [[seconds_of(work) for work in works] for _ in range(repeats)]
    return [list(times) for times in zip(*turns, strict=True)]


def summarize(
    name: str,
    ours: Sequence[float],
    baseline: Sequence[float] | None = None,
    *,
    amount: float | None = None,
    unit: str = "",
    equal: bool | None = None,
    goal: float | None = None,
    memory_ratio: float | None = None,
    memory_goal: float | None = None,
    recorded_rate: float | None = None,
    limit: float | None = None,
) -> Row:
    """Return the row of times that were taken in turn, each of ``amount`` ``unit``s.

    Where there is no baseline to run, ``recorded_rate`` is one to compare the rate with.
    """
    median = statistics.median(ours)
    rate = None if amount is None else amount / median
    ratio = None if baseline is None else statistics.median(b / a for a, b in zip(ours, baseline, strict=True))
    if recorded_rate is not None:
        assert rate is not None and baseline is None, name
        ratio = rate / recorded_rate
    quartiles = statistics.quantiles(ours, n=4) if len(ours) > 1 else [median] * 3
    return Row(
        work=name,
        ours=median,
        spread=(quartiles[2] - quartiles[0]) / 2 / median,
        baseline=None if baseline is None else statistics.median(baseline),
        ratio=ratio,
        memory_ratio=memory_ratio,
        rate=rate,
        recorded_rate=recorded_rate,
        unit=unit,
        equal=equal,
        goal=goal,
        memory_goal=memory_goal,
        limit=limit,
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
    num_bytes = queue.get()
    process.join()
    return num_bytes


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
    head = ("work", "ours", "baseline", "ratio", "goal", "memory", "rate", "of the limit", "equal")
    cells = []
    for row in rows:
        baseline = "" if row.baseline is None else _seconds(row.baseline)
        if row.recorded_rate is not None:
            baseline = f"{row.recorded_rate:,.0f} {row.unit} (recorded)"
        memory_goal = "" if row.memory_goal is None else f" (goal {row.memory_goal:g})"
        cells.append(
            [
                row.work,
                f"{_seconds(row.ours)} ± {100 * row.spread:.0f} %",
                baseline,
                "" if row.ratio is None else f"**{row.ratio:.2f}**",
                "" if row.goal is None else f"{row.goal:g}",
                "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}{memory_goal}",
                "" if row.rate is None else f"{row.rate:,.0f} {row.unit}",
                "" if row.limit is None else f"{100 * row.limit / row.ours:.0f} %",
                "" if row.equal is None else ("yes" if row.equal else "NO"),
            ]
        )
    return markdown_table(head, cells)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


@dataclass(frozen=True)
class Limits:
    """What a processor reaches at most, measured with torch on the threads that it has here.

    Attributes:
        operations: FLOP/s of matrix products, by type.
        bandwidth: bytes/s at which memory is read.
    """

    operations: dict[torch.dtype, float]
    bandwidth: float

    @classmethod
    @functools.cache
    def measure(cls) -> Limits:
        """Multiply matrices that fit the caches, and read more memory than they hold: half a second each."""
        operations = {}
        for dtype in (torch.float32, torch.bfloat16):
            left, right = torch.randn(2, PRODUCT, PRODUCT).to(dtype)
            operations[dtype] = 2 * PRODUCT**3 / _fastest(partial(torch.mm, left, right))
        values = torch.ones(READ_BYTES // 4)
        return cls(operations, READ_BYTES / _fastest(values.sum))

    def __str__(self) -> str:
        fp32, bf16 = (self.operations[dtype] / 1e9 for dtype in (torch.float32, torch.bfloat16))
        return (
            f"products reach {fp32:.0f} GFLOP/s in fp32 and {bf16:.0f} in bf16, memory is read at "
            f"{self.bandwidth / 1e9:.0f} GB/s"
        )

    def seconds(self, *, operations: float, dtype: torch.dtype, num_bytes: float = 0.0) -> float:
        """Return the least time for ``operations`` of matrix products in ``dtype`` that read ``num_bytes`` once."""
        return max(operations / self.operations[dtype], num_bytes / self.bandwidth)


PRODUCT = 1536  # rows and columns of a matrix
READ_BYTES = 1 << 28


def _fastest(work: Callable[[], Any], *, seconds: float = 0.5) -> float:
    times = [seconds_of(work)]
    while sum(times) < seconds:
        times.append(seconds_of(work))
    return min(times)


def machine() -> str:
    """Return the processor, its vector instructions, the cores, torch and the day."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    fields = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    name = " ".join(fields.get("model name", [])) or platform.processor()
    flags = fields.get("flags", fields.get("Features", []))  # x86, Arm
    present = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16") if word in flags]
    cores = len(os.sched_getaffinity(0))
    return (
        f"{name} ({' '.join(present)}), {cores} core{'s' * (cores > 1)}, torch {torch.__version__}, "
        f"{datetime.date.today().isoformat()}"
    )


def merged(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return the lines of ``old`` (a table) with those of ``new`` in place of the ones about the same work."""
    if old[:1] != new[:1]:
        old = []  # a table of other columns
    rows = {line.split("|")[1].strip(): line for line in old[2:]}
    rows |= {line.split("|")[1].strip(): line for line in new[2:]}
    return [*new[:2], *rows.values()]


def write_into_readme(rows: Sequence[Row], *, afresh: bool) -> list[str]:
    """Put the rows into the table of README.md and return its lines; others are kept, unless it is made ``afresh``."""
    old = [line for line in read_results(README, command=COMMAND) if line.startswith("|")]
    lines = merged([] if afresh else old, table(rows))
    write_results(README, [f"Last run: {machine()}; {Limits.measure()}.", "", *lines], command=COMMAND)
    return lines


# Text: random documents that need no vocabulary, and the quickstart's prose
COMMANDS = {"pad": 0, "eos": 0, "ENC": 1, "MASK": 2, "sMASK": 3, "gMASK": 4, "sop": 5, "eop": 6, "sep": 8}
SENTENCE_END = 7
VOCABULARY = 30000


def random_vocabulary() -> Tokenizer:
    """Return a tokenizer of numbered words with a few commands, and one word that ends sentences."""
    words = ["." if index == SENTENCE_END else f"w{index}" for index in range(VOCABULARY)]
    return word_list_tokenizer(words, COMMANDS)


class RandomDocuments:
    """Documents of 20 to ``longest`` random tokens with a sentence end every twenty or so."""

    def __init__(self, count: int, *, longest: int = 600, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(20, longest, count)
        self._documents = [generator.integers(SENTENCE_END + 1, VOCABULARY, length) for length in self.lengths]
        for tokens in self._documents:
            tokens[generator.random(len(tokens)) < 0.05] = SENTENCE_END

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return Document(self._documents[index])


def prose() -> list[str]:
    """Return the documents of the quickstart's corpus."""
    with tempfile.TemporaryDirectory() as folder:
        script = REPOSITORY / "scripts" / "quickstart_corpus.py"
        subprocess.run([sys.executable, str(script), folder], check=True, capture_output=True, cwd=REPOSITORY)
        path = Path(folder) / "train.jsonl"
        return [parse_json(line, place=str(path))["text"] for line in lines_of(read_text(path))]
