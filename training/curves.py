"""Tell how a run went from its JSON lines file: a picture of the loss curves, and a table of before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.logging import read_lines

# Scalar name part -> label of the curve.
CURVES = {"": "all objectives", "bert_": "words", "sent_": "sentences", "gpt_": "documents", "multi_": "downstream"}


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
