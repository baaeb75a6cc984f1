"""Where the measurements go: the console with its progress bar, TensorBoard, a JSON lines file, Weights & Biases.

A picture of the loss curves and a table of before and after are made of the JSON lines.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from files.writing import write_whole
from training.metrics import Scalar

# Scalar name part -> label of the curve.
CURVES = {"": "all objectives", "bert_": "words", "sent_": "sentences", "gpt_": "documents", "multi_": "downstream"}
BAR_FORMAT = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}] {desc}"


class Writer(Protocol):
    """A place that takes measurements."""

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        """Take one row of measurements and the same as named scalars."""

    def close(self) -> None:
        """Finish writing."""


class JsonLinesWriter:
    """One JSON object a line, flushed at once. A resumed run drops the rows behind its checkpoint first."""

    def __init__(self, path: Path, *, iteration: int) -> None:
        kept = [line for line in read_lines(path) if json.loads(line)["iteration"] <= iteration] if iteration else []
        write_whole(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        """Append ``row``; numbers that JSON does not have become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[str]:
    """Return the complete lines of a JSON lines file: a last one without its end was cut off by a crash."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [line for line in text[: text.rfind("\n") + 1].split("\n") if line]


class TensorBoardWriter:
    """Event files with the original's scalar names; events behind ``iteration`` are purged."""

    def __init__(self, folder: Path, *, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

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
        self._run = wandb.init(project="glm", name=name, config=dict(config), resume="allow")

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar]) -> None:
        if scalars:
            self._run.log({name: value for name, value, _ in scalars}, step=scalars[0][2])

    def close(self) -> None:
        self._run.finish()


class Console:
    """Print lines, and on a terminal keep a progress bar with a dense line below them."""

    def __init__(self, *, total: int, initial: int, progress: bool, silent: bool = False) -> None:
        """Start at update ``initial`` of ``total``; a ``silent`` console (all ranks but the first) prints nothing.

        The bar appears with the first update.
        """
        self._silent = silent
        self._bar: Any = None
        self._wants_bar = progress and not silent and sys.stderr.isatty()
        self._total, self._initial = total, initial

    def print(self, line: str) -> None:
        """Print one line, above the bar when there is one."""
        if self._silent:
            return
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def step(self) -> None:
        """Advance the bar by one update."""
        if self._wants_bar and self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._initial, dynamic_ncols=True, bar_format=BAR_FORMAT)
        if self._bar is not None:
            self._bar.update(1)

    def dense(self, line: str) -> None:
        """Show the dense line: beside the bar, or as a line of its own."""
        if self._bar is None:
            self.print(line)
        else:
            self._bar.set_description_str(line.split(" | ", 1)[1], refresh=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class RunLog:
    """The console and all writers of a run as one; ranks other than the first have an empty, silent one."""

    def __init__(self, console: Console, writers: Sequence[Writer] = ()) -> None:
        self.console = console
        self._writers = list(writers)

    def write(self, row: Mapping[str, Any], scalars: Sequence[Scalar] = ()) -> None:
        """Hand a row and its scalars to every writer."""
        for writer in self._writers:
            writer.write(row, scalars)

    def close(self) -> None:
        self.console.close()
        for writer in self._writers:
            writer.close()


def tensorboard_writer(folder: Path, *, iteration: int) -> tuple[list[Writer], str | None]:
    """Return a TensorBoard writer, or none and the line to print where tensorboard is not installed."""
    try:
        return [TensorBoardWriter(folder, iteration=iteration)], None
    except ImportError:
        return [], "note: no TensorBoard event files (pip install tensorboard)"


def store_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write ``content`` as a JSON file, whole or not at all; without ``indent`` in one line."""
    write_whole(path, json.dumps(content, indent=indent, default=str) + "\n")


def draw_loss_curves(metrics_file: Path, picture: Path, *, title: str = "") -> str | None:
    """Draw training losses (thin) and validation losses (dots) per objective.

    Returns a line to print when there is nothing to draw or matplotlib is missing, else None.
    """
    rows = [json.loads(line) for line in read_lines(metrics_file)]
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
            axes.plot(*zip(*train, strict=True), color=color, linewidth=0.8, alpha=0.6, label=label)
        if valid:
            axes.plot(*zip(*valid, strict=True), color=color, marker="o", linestyle="--", label=f"{label}, validation")
    axes.set(xlabel="updates", ylabel="loss per target token (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    temporary = picture.with_name(picture.stem + ".tmp.png")
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    temporary.replace(picture)
    return None


def validation_table(metrics_file: Path, *, unigram_entropy: float | None = None) -> list[str]:
    """Return lines with the first and the last validation loss of every objective; none after fewer than two.

    ``unigram_entropy`` of the text (nats) is what a model that ignores all context would reach.
    """
    rows = [row for row in map(json.loads, read_lines(metrics_file)) if row["kind"] == "evaluation"]
    if not rows or rows[0]["iteration"] == rows[-1]["iteration"]:
        return []
    first, last = rows[0], rows[-1]
    lines = [f"validation loss (nats per target token) at iterations {first['iteration']} -> {last['iteration']}"]
    for name, label in CURVES.items():
        points = _points(rows, "evaluation", f"{name}loss")
        if points:
            lines.append(f"  {label:<15} {points[0][1]:7.3f} -> {points[-1][1]:6.3f}")
    if unigram_entropy is not None:
        lines.append(f"  {'unigram entropy of the text':<26} {unigram_entropy:6.3f}")
    return lines


def _points(rows: list[dict[str, Any]], kind: str, key: str) -> list[tuple[int, float]]:
    return [(row["iteration"], row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None]
