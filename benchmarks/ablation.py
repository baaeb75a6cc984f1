"""Cloze fine-tuning against a classification head, by the number of training examples: a table and a plot.

    python -m benchmarks ablation --data-dir AGNEWS --checkpoint CHECKPOINT [--runs FOLDER] [--plot FILE.png]

Trains on 32 to 600 AG News examples with three seeds each (24 runs of one to three minutes on one core) and evaluates
on ``test.csv``. A run that has its results is not made again. CHECKPOINT: ``scripts/pretrain_tiny.sh en``.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness import REPOSITORY
from benchmarks.pages import markdown_table
from files.reading import read_json, value_of

EPOCHS = {32: 30, 100: 15, 300: 8, 600: 6}  # by the number of training examples
SEEDS = (1, 2, 3)
MODES = {"cloze": ("--cloze-eval", "--pattern-id", "2"), "head": ()}
MODEL = (
    "--block-lm", "--task-mask", "--num-layers", "6", "--hidden-size", "256", "--num-attention-heads", "4",
    "--max-position-embeddings", "1024", "--tokenizer-model-type", "bert-base-uncased",
    "--tokenizer-type", "BertWordPieceTokenizer",
)  # fmt: skip
TRAINING = (
    "--task", "agnews", "--seq-length", "128", "--batch-size", "8", "--eval-batch-size", "32", "--lr", "3e-4",
    "--warmup", "0.1", "--weight-decay", "0.1", "--bf16", "--no-progress", "--save-epoch", "1000", "--overwrite",
)  # fmt: skip

Scores = Mapping[tuple[str, int], Sequence[float]]  # accuracies of the seeds by mode and number of examples


def write_subsets(data_dir: Path, folder: Path) -> None:
    """Write one folder per size: the first rows of the shuffled training file, and the test file."""
    with (data_dir / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    random.Random(0).shuffle(rows)
    if len(rows) < max(EPOCHS):
        raise ValueError(f"{data_dir / 'train.csv'} has {len(rows)} rows; {max(EPOCHS)} are needed")
    for size in EPOCHS:
        subset = folder / str(size)
        subset.mkdir(parents=True, exist_ok=True)
        with (subset / "train.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows[:size])
        shutil.copy(data_dir / "test.csv", subset / "test.csv")


def accuracy(runs: Path, mode: str, size: int, seed: int, *, checkpoint: Path) -> float:
    """Return the accuracy of one run after its last epoch, made now if it is not there."""
    name = f"{mode}-{size}-{seed}"
    results = runs / "runs" / name / "test_results.json"
    if not results.is_file():
        command = [
            sys.executable, "finetune_glm.py", *MODEL, *MODES[mode], *TRAINING, "--load-pretrained", str(checkpoint),
            "--data-dir", str(runs / "data" / str(size)), "--epochs", str(EPOCHS[size]),
            "--eval-epoch", str(EPOCHS[size]), "--seed", str(seed),
            "--summary-dir", str(runs), "--experiment-name", name,
        ]  # fmt: skip
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return value_of(read_json(results), "accuracy", float, place=str(results))


def table(scores: Scores) -> list[str]:
    """Return the lines of the Markdown table: every seed, mean and deviation."""
    head, rows = ("examples", "cloze: seeds", "mean ± deviation", "head: seeds", "mean ± deviation"), []
    for size in EPOCHS:
        cells = [str(size)]
        for mode in MODES:
            values = scores[mode, size]
            cells.append(", ".join(f"{value:.1f}" for value in values))
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
        rows.append(cells)
    return markdown_table(head, rows)


def plot(scores: Scores, file: Path) -> None:
    """Draw mean and deviation over the number of examples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for mode, label in (("cloze", "cloze (blank and verbalizer)"), ("head", "classification head")):
        means = [statistics.mean(scores[mode, size]) for size in EPOCHS]
        deviations = [statistics.stdev(scores[mode, size]) for size in EPOCHS]
        axes.errorbar(list(EPOCHS), means, yerr=deviations, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(list(EPOCHS), [str(size) for size in EPOCHS])
    axes.minorticks_off()
    axes.set_xlabel("training examples of AG News")
    axes.set_ylabel("accuracy, %")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def ablation(argv: Sequence[str]) -> int:
    """Make what is missing, print the table, draw the plot."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where subsets and runs are kept")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args(argv)
    runs = arguments.runs.resolve()
    write_subsets(arguments.data_dir, runs / "data")
    checkpoint = arguments.checkpoint.resolve()
    scores = {
        (mode, size): [accuracy(runs, mode, size, seed, checkpoint=checkpoint) for seed in SEEDS]
        for size in EPOCHS
        for mode in MODES
    }
    print("\n".join(table(scores)))
    if arguments.plot is not None:
        plot(scores, arguments.plot)
    return 0
