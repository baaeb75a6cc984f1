"""Where the measurements go: the console with its progress bar, TensorBoard, a JSON lines file, Weights & Biases.

A picture of the loss curves and a table of before and after are made of the JSON lines.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from files.progress import QUIET_SECONDS, duration
from files.reading import parse_json, value_of
from files.writing import whole_file, write_whole
from training.metrics import Scalar
from training.settings import Settings

logger = logging.getLogger("glm")
# Events of a run, under the original's names: level INFO, those of epochs and log intervals DEBUG.
perf_log = logging.getLogger("glm.perf")
perf_log.propagate = False
perf_log.setLevel(logging.CRITICAL)
STARTED = time.time()  # nearly when the process did

# Scalar name part -> label of the curve.
CURVES = {"": "all objectives", "bert_": "token", "sent_": "sentence", "gpt_": "document", "multi_": "downstream"}
FEW_POINTS = 20  # of a curve that are marked
END_PREFIX = "the end of training for {} data"
BAR_FORMAT = "ETA {remaining} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}] {desc}"


class PerfLog(logging.Handler):
    """Print events of a run as the lines of the cloze benchmark: ``[PerfLog] {"event", "value", "metadata"}``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one; ``record`` has the event as its message and the values, if any, as its arguments."""
        place = {"file": record.pathname, "lineno": record.lineno, "time_ms": int(1000 * record.created), "rank": 0}
        event = {"event": record.msg, "value": record.args or None, "metadata": place}
        print(f"[PerfLog] {json.dumps(event)}", flush=True)


def start_perf_log(settings: Settings, *, first: bool) -> None:
    """Let the first rank print the events that ``--perf-log`` asks for, and those of the start."""
    run = settings.run
    if run.perf_log is not None and first:
        perf_log.handlers = [PerfLog()]
        perf_log.setLevel(logging.DEBUG if run.perf_log == "steps" else logging.INFO)
    values = {name: str(value) if isinstance(value, Path) else value for name, value in settings.values.items()}
    submitted = {"submmiter": run.experiment_name, "model": settings.values.get("task") or "glm"}  # as it is spelled
    submitted["config_path"] = str(run.summary_folder / "config.json")
    perf_log.info("SUBMITTED_INFO", submitted | {"config": values})
    perf_log.info("LAUNCH_TRAINING")
    perf_log.info("INIT_START")


class Writer(Protocol):
    """A place that takes measurements."""

    place: str

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        """Take one row of measurements and the same as named scalars."""

    def close(self) -> None:
        """Finish writing."""


class JsonLinesWriter:
    """One JSON object a line, flushed at once. A resumed run drops the rows behind its checkpoint first."""

    def __init__(self, path: Path, *, iteration: int) -> None:
        """Begin the file, or go on after ``iteration``. Damaged rows are dropped with a warning."""
        rows = [row for row in (read_rows(path) if iteration else []) if row["iteration"] <= iteration]
        # Every run that comes to its end evaluates there, also one that was killed afterwards.
        rows = [row for row in rows if not str(row.get("prefix")).startswith(END_PREFIX.partition("{")[0])]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")
        self.place = str(path)

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        """Append ``row``; numbers that JSON does not have become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file of metrics; a crash or a fault of the disk may have damaged some.

    A warning names them; they are left out. No file has no rows.
    """
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), start=1):
        if line:
            try:
                rows.append(_row(line))
            except ValueError:
                damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:10])) + (" ..." if len(damaged) > 10 else "")
        logger.warning(f"{path}: {len(damaged)} of {len(damaged) + len(rows)} rows are damaged and left out: {shown}")
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """Return a row: its kind, its iteration and its losses are what readers of the file go by."""
    row = parse_json(line, place="row")
    if not isinstance(row, dict):
        raise ValueError("row: not an object")
    value_of(row, "kind", str, place="row")
    value_of(row, "iteration", int, place="row", at_least=0)
    for name in row:
        if name.endswith("loss"):
            value_of(row, name, float, place="row", default=None)
    return row


class TensorBoardWriter:
    """Event files with the original's scalar names; events behind ``iteration`` are purged."""

    def __init__(self, folder: Path, *, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = str(folder)
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=iteration + 1 if iteration else None)

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        """Add ``scalars``."""
        for name, value, step in scalars:
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A Weights & Biases run."""

    def __init__(self, name: str, *, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError("--wandb needs the wandb package: pip install wandb, or leave --wandb out") from None
        self.place = "wandb"
        self._run = wandb.init(project="glm", name=name, config=dict(config), resume="allow")

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        if scalars:
            self._run.log({name: value for name, value, _ in scalars}, step=scalars[0][2])

    def close(self) -> None:
        self._run.finish()


class Console:
    """Print lines, and on a terminal keep a progress bar with a progress line below them."""

    def __init__(self, *, total: int, initial: int, progress: bool, silent: bool = False) -> None:
        """Start at update ``initial`` of ``total``; a ``silent`` console (all ranks but the first) prints nothing.

        The bar appears with the first update.
        """
        self._silent = silent
        self._bar: Any = None
        self._wants_bar = progress and not silent and sys.stderr.isatty()
        self._total, self._initial, self._done = total, initial, initial
        self._shows_lines = progress and not silent and not self._wants_bar
        self._began = self._said = time.monotonic()

    def print(self, line: str) -> None:
        """Print one line, above the bar when there is one.

        When nobody reads it any more (``| head``, a closed terminal) the run is asked to save and leave, as by a
        signal. A full disk costs the line alone.
        """
        if self._silent:
            return
        self._said = time.monotonic()
        try:
            if self._bar is None:
                print(line, flush=True)
            else:
                self._bar.write(line)
        except OSError as error:
            self._silent = True
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno in (errno.EPIPE, errno.EIO):
                signal.raise_signal(signal.SIGHUP)
            else:
                print(f"warning: no further lines on the standard output: {error}", file=sys.stderr, flush=True)

    def step(self) -> None:
        """Advance the bar by one update; where there is none, say how far the run is when nothing was said for long."""
        self._done += 1
        now = time.monotonic()
        if self._shows_lines and now - self._said > QUIET_SECONDS:
            left = (self._total - self._done) * (now - self._began) / (self._done - self._initial)
            self.print(f"step {self._done}/{self._total} | ETA {duration(left)}")
        if self._wants_bar and self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._initial, dynamic_ncols=True, bar_format=BAR_FORMAT)
        if self._bar is not None:
            self._bar.update(1)

    def dense(self, line: str) -> None:
        """Show the progress line: beside the bar, or as a line of its own."""
        if self._bar is None:
            self.print(line)
        else:
            self._bar.set_description_str(line.split(" | ", 2)[2], refresh=False)  # it has step and ETA itself

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class RunLog:
    """The console and all writers of a run as one; ranks other than the first have an empty, silent one."""

    def __init__(self, console: Console, writers: Sequence[Writer] = ()) -> None:
        self.console = console
        self._writers = list(writers)
        self._failed: set[Writer] = set()

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar] = ()) -> None:
        """Hand a row and its scalars to every writer. A full disk is said once: measurements are not worth a run."""
        for writer in self._writers:
            self._try(writer, lambda writer=writer: writer.write(row, scalars))  # type: ignore[misc]

    def close(self) -> None:
        self.console.close()
        for writer in self._writers:
            self._try(writer, writer.close)

    def _try(self, writer: Writer, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if writer not in self._failed:
                self._failed.add(writer)
                self.console.print(f"warning: measurements are lost, the run goes on: {writer.place}: {error}")


def tensorboard_writer(folder: Path, *, iteration: int) -> tuple[list[Writer], str | None]:
    """Return a TensorBoard writer, or none and the line to print where tensorboard is not installed."""
    try:
        return [TensorBoardWriter(folder, iteration=iteration)], None
    except ImportError:
        return [], "note: no TensorBoard event files (pip install tensorboard)"


def store_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write ``content`` as a JSON file, whole or not at all; without ``indent`` in one line."""
    write_whole(path, json_text(content, indent=indent))


def json_text(content: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """Return ``content`` as a JSON file has it; paths are texts."""
    return json.dumps(content, indent=indent, default=str) + "\n"


def draw_loss_curves(
    metrics_file: Path, picture: Path, *, title: str = "", unigram_entropy: float | None = None
) -> str | None:
    """Draw training losses (thin) and validation losses (dots) per objective, and what a model without context reaches.

    Returns a line to print when there is nothing to draw or matplotlib is missing, else None.
    """
    rows = read_rows(metrics_file)
    if not any(row["kind"] == "train" for row in rows):
        return "note: no loss curves, the run logged no interval (--log-interval)"
    try:
        import matplotlib
    except ImportError:
        return f"note: no picture of the loss curves (pip install matplotlib); the numbers are in {metrics_file}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, label) in enumerate(CURVES.items()):
        key, color = f"{name}loss", f"C{index}"
        train = _points(rows, "train", key)
        valid = _points(rows, "evaluation", key)
        if train:
            marker = "." if len(train) <= FEW_POINTS else None
            axes.plot(*zip(*train, strict=True), color=color, linewidth=0.8, alpha=0.6, marker=marker, label=label)
        if valid:
            axes.plot(*zip(*valid, strict=True), color=color, marker="o", linestyle="--", label=f"{label}, validation")
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="gray", linestyle=":", label="frequencies of tokens alone")
    axes.set(xlabel="updates", ylabel="loss per target token (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        with whole_file(picture) as file:
            figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        return f"note: no picture of the loss curves: {error}"
    finally:
        pyplot.close(figure)
    return None


def validation_table(metrics_file: Path, *, unigram_entropy: float | None = None) -> list[str]:
    """Return lines with the first and the last validation loss of every objective; none after fewer than two.

    ``unigram_entropy`` of the text (nats) is what a model that ignores all context would reach.
    """
    rows = [row for row in read_rows(metrics_file) if row["kind"] == "evaluation" and row.get("loss") is not None]
    if not rows or rows[0]["iteration"] == rows[-1]["iteration"]:
        return []
    first, last = rows[0], rows[-1]
    lines = [f"validation loss (nats per target token) at iterations {first['iteration']} -> {last['iteration']}"]
    for name, label in CURVES.items():
        points = _points(rows, "evaluation", f"{name}loss")
        if points:
            lines.append(f"  {label:<15} {points[0][1]:7.3f} -> {points[-1][1]:6.3f}")
    if unigram_entropy is not None:
        lines.append(f"  {'unigram entropy of the text':<27}{unigram_entropy:6.3f}")
    return lines


def _points(rows: list[dict[str, Any]], kind: str, key: str) -> list[tuple[int, float]]:
    return [(row["iteration"], row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None]
