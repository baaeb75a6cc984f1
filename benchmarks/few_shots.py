"""Ways to fine-tune one checkpoint on few examples: cloze questions, the same with LoRA, a head, P-tuning.

    python -m benchmarks few_shots --checkpoint CHECKPOINT --data-dir SUPERGLUE [--tasks copa cb] [--sizes 32 100]

SUPERGLUE has a folder for each task, with train.jsonl and val.jsonl. A run trains on the first examples of the training
file in an order that its seed draws (of ``all``: on all), for a fixed number of epochs, and is evaluated once, on
val.jsonl: nothing is chosen by those examples. Every run is a line of FOLDER/few_shots.jsonl; what is there is not run
again, so that the command may be ended and given again, with other tasks, sizes, methods and seeds too. The table
has the mean over the seeds, its 95 % interval (Student's t) and what the most frequent answer would reach;
``--output`` puts it into a page between two marks, with a JSON file beside it. docs/few_shots.md says more.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import machine
from benchmarks.pages import markdown_table, write_results
from files.errors import check_bounds
from files.reading import lines_of, parse_json, read_json, read_text
from files.writing import write_whole

COMMAND = "python -m benchmarks few_shots"
ALL = "all"
SIZES = ("32", "100", ALL)
SEEN = 1000  # examples, at least: a run takes as many epochs as show so many
# Two-sided 95 % quantiles of Student's t by the number of seeds.
QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Task:
    """A task of SuperGLUE: its folder and flags of its cloze questions."""

    folder: str
    seq_length: int
    pattern: int


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: its name in the table, flags, and learning rate of a small model."""

    title: str
    flags: tuple[str, ...]
    rate: float


TASKS = {"copa": Task("COPA", 96, 0), "cb": Task("CB", 256, 4), "rte": Task("RTE", 256, 0), "wic": Task("WiC", 128, 1)}
METHODS = {
    "cloze": Method("cloze", ("--cloze-eval",), 3e-4),
    "lora": Method("cloze + LoRA", ("--cloze-eval", "--lora-rank", "8"), 2e-3),
    "head": Method("head", (), 3e-4),
    "p-tuning": Method("P-tuning", ("--cloze-eval", "--continuous-prompt", "--num-prompt-tokens", "3"), 3e-4),
}

Key = tuple[str, str, str, int]  # task, size, method, seed


def key_of(row: Mapping[str, Any]) -> Key:
    """Return what a line of results is of."""
    return row["task"], row["size"], row["method"], row["seed"]


def write_subset(source: Path, folder: Path, *, size: str, seed: int) -> int:
    """Write train.jsonl with ``size`` examples and val.jsonl to ``folder``; return how many examples there are.

    Raises ValueError when the training file has fewer.
    """
    rows = lines_of(read_text(source / "train.jsonl"))
    if size != ALL:
        if len(rows) < int(size):
            raise ValueError(f"{source / 'train.jsonl'} has {len(rows)} examples; --sizes {size} needs more")
        random.Random(seed).shuffle(rows)
        rows = rows[: int(size)]
    write_whole(folder / "train.jsonl", "".join(f"{row}\n" for row in rows))
    write_whole(folder / "val.jsonl", read_text(source / "val.jsonl"))
    return len(rows)


def run(key: Key, *, values: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fine-tune and evaluate once with ``finetune_glm.py``; return the line of results."""
    from finetune_glm import main

    task_name, size, method_name, seed = key
    task, method = TASKS[task_name], METHODS[method_name]
    name = "-".join(map(str, key))
    data = folder / "data" / name
    count = write_subset(values.data_dir / task.folder, data, size=size, seed=seed)
    epochs = values.epochs or math.ceil(SEEN / count)
    words = [
        "--task", task_name, "--data-dir", str(data), *method.flags, "--pattern-id", str(task.pattern),
        "--load-pretrained", str(values.checkpoint.resolve()), "--seq-length", str(task.seq_length),
        "--batch-size", "8", "--eval-batch-size", "32", "--num-workers", "0", "--lr", str(values.lr or method.rate),
        "--warmup", "0.1", "--weight-decay", "0.1", "--epochs", str(epochs), "--eval-epoch", str(epochs),
        "--eval-valid", "--seed", str(seed), "--summary-dir", str(folder), "--experiment-name", name, "--overwrite",
        *(["--bf16"] if values.bf16 else []), "--no-progress", "--device", values.device,
    ]  # fmt: skip
    began = time.perf_counter()
    if main(words):
        raise ValueError(f"{name} was stopped; give the same command to go on")
    results: dict[str, Any] = read_json(folder / "runs" / name / "test_results.json")
    metrics = {metric: value for metric, value in results.items() if isinstance(value, float)}
    first = next(iter(metrics))
    seconds = round(time.perf_counter() - began, 1)
    entries = {"examples": count, "epochs": epochs, "rate": values.lr or method.rate, "bf16": values.bf16}
    return {**dict(zip(("task", "size", "method", "seed"), key)), first: metrics[first], "metrics": metrics,
            **entries, "metric": first, "majority": majority(task_name, data), "seconds": seconds}  # fmt: skip


def majority(task_name: str, data: Path) -> dict[str, float]:
    """Return the metrics of the most frequent answer, in percent like those of the task."""
    from tasks.registry import find_task
    from tasks.superglue.readers import DataOptions

    task = find_task(task_name)
    return task.majority_baseline(task.examples(str(data), "dev", DataOptions()))


def interval(values: Sequence[float]) -> str:
    """Return a mean with half of its 95 % interval, where there is more than one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    quantile = QUANTILES.get(len(values), 1.96)
    return f"{mean:.1f} ± {quantile * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the Markdown table: a line per task and size, a column per method that was run."""
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    head = ["task", "examples", "metric", "seeds", *(METHODS[name].title for name in methods), "majority"]
    lines = []
    pairs = {(row["task"], row["size"]): row["examples"] for row in rows}
    for task, size in sorted(pairs, key=lambda pair: (pair[0], pairs[pair])):
        group = [row for row in rows if (row["task"], row["size"]) == (task, size)]
        metric = group[0]["metric"]
        values = {name: [row[metric] for row in group if row["method"] == name] for name in methods}
        shown = [interval(scores) if scores else "" for scores in values.values()]
        seeds = "/".join(dict.fromkeys(str(len(scores)) for scores in values.values() if scores))
        count = f"all {group[0]['examples']:,}" if size == ALL else size
        cells = [task, count, metric, seeds, *shown, f"{group[0]['majority'][metric]:.1f}"]
        lines.append(cells)
    return markdown_table(head, lines)


def write_page(rows: Sequence[Mapping[str, Any]], page: Path, *, checkpoint: str) -> None:
    """Put the table into ``page``, and the lines of results as JSON beside it."""
    hours = sum(row["seconds"] for row in rows) / 3600
    said = f"{len(rows)} runs of `{checkpoint}`, {hours:.1f} hours together. {machine()}."
    write_results(page, [said, "", *table(rows)], command=COMMAND)
    content = ",\n".join(json_line(row) for row in rows)
    write_whole(page.with_suffix(".json"), f"[\n{content}\n]\n")


def json_line(row: Mapping[str, Any]) -> str:
    """Return a line of results as text."""
    from training.logging import json_text

    return json_text(row, indent=None).strip()


def few_shots(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the table of all that are there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks few_shots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="as for --load-pretrained")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the tasks' folders")
    parser.add_argument("--folder", type=Path, default=Path("runs/few_shots"), help="default: runs/few_shots")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help=f"examples (default: {' '.join(SIZES)})")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, help=f"of every run (default: as many as show {SEEN:,} examples)")
    parser.add_argument("--lr", type=float, help="of every run (default: that of the method)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, where the processor has it")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--output", type=Path, help="page to put the table into, such as docs/few_shots.md")
    values = parser.parse_args(argv)
    check_bounds(values, ("epochs",) if values.epochs is not None else (), at_least=1)
    for size in values.sizes:
        if size != ALL and not (size.isdecimal() and int(size) > 0):
            raise ValueError(f"--sizes {size}: a number of examples or {ALL} is needed")
    folder = values.folder.resolve()
    rows = read_rows(folder / "few_shots.jsonl", checkpoint=values.checkpoint.name)
    done = {key_of(row) for row in rows}
    keys = [
        (task, size, method, seed)
        for task in values.tasks
        for size in values.sizes
        for seed in values.seeds
        for method in values.methods
    ]
    for key in keys:
        if key not in done:
            rows.append({**run(key, values=values, folder=folder), "checkpoint": values.checkpoint.name})
            write_whole(folder / "few_shots.jsonl", "".join(f"{json_line(row)}\n" for row in rows))
    print("\n".join(table(rows)))
    if values.output is not None:
        write_page(rows, values.output, checkpoint=values.checkpoint.name)
    return 0


def read_rows(file: Path, *, checkpoint: str) -> list[dict[str, Any]]:
    """Return the lines of results. Raises ValueError when they are of another checkpoint."""
    if not file.is_file():
        return []
    numbered = enumerate(lines_of(read_text(file)), start=1)
    rows: list[dict[str, Any]] = [parse_json(line, place=f"{file}, line {number}") for number, line in numbered]
    for row in rows:
        if row["checkpoint"] != checkpoint:
            raise ValueError(f"{file} has runs of {row['checkpoint']}, not of {checkpoint}; give another --folder")
    return rows
