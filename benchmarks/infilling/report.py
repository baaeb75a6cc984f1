"""The results of all rivals as a page: one table per kind of blank, trainings, curves, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.infilling import RIVALS
from benchmarks.infilling.blanks import KINDS
from benchmarks.infilling.measuring import RESULT
from benchmarks.pages import markdown_table, write_results
from files.reading import read_json
from files.writing import write_whole
from training.logging import json_text

COMMAND = "python -m benchmarks infilling table"
FIGURES = {"exact": "exact match, %", "bleu2": "BLEU-2", "rouge": "ROUGE-L", "right_length": "right length, %"}
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the training at which a curve is read


def with_interval(figure: Sequence[float]) -> str:
    """Return a figure and its interval."""
    value, low, high = figure
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def answering(runs: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return title, how the length is found, and the results of everything that has answered."""
    rows = []
    for run in runs.values():
        rows.append((run["title"], run["note"], run["results"]))
        rows += [(run["title"], note, results) for note, results in run["variants"].items()]
    return rows


def lines_of_page(runs: Mapping[str, Any], picture: str) -> list[str]:
    """Return what stands between the marks of the page; ``picture`` is the file of the curves."""
    first = next(iter(runs.values()))
    experiment = first["experiment"]
    updates, minutes = experiment["updates"], f"{experiment['minutes']:g} minutes"
    length = minutes if updates is None else f"{updates} updates"
    lines = [
        f"{len(runs)} of {len(RIVALS)} rivals, {length} of training with {experiment['threads']} "
        f"thread{'s' * (experiment['threads'] > 1)}{', in bfloat16' * experiment['bf16']}. "
        f"{experiment['layers']} layers, width {experiment['hidden']}, samples of "
        f"{experiment['seq_length']} tokens, batches of {experiment['batch_size']}, {experiment['count']} blanks of "
        f"each kind, decoding with seeds {', '.join(map(str, experiment['seeds']))}, temperature "
        f"{experiment['temperature']:g}, the {experiment['top_k']} best tokens. {first['machine']}.",
        "",
        "### Training",
        "",
    ]
    head = ["rival", "parameters", "rate (loss after the sweep)", "updates", "processor time", "tokens/s"]
    rows = []
    for run in runs.values():
        sweep = ", ".join(f"{float(rate):g}: {one['loss']:.2f}" for rate, one in run["sweep"].items())
        rows.append(
            [
                run["title"], f"{run['parameters']:,}", f"**{run['rate']:g}**" + (f" ({sweep})" if sweep else ""),
                f"{run['updates']:,}", f"{run['seconds']:.0f} s", f"{run['tokens_per_second']:,.0f}",
            ]
        )  # fmt: skip
    lines += [
        *markdown_table(head, rows),
        "",
        "Loss of each rival's own objective (not comparable between rivals), mean since the point before:",
        "",
    ]
    rows = [
        [run["title"], *(f"{_loss_at(run['curve'], share):.2f}" for share in SHARES)] for run in runs.values()
    ]  # fmt: skip
    lines += markdown_table(["rival", *(f"{share:.0%} of the time" for share in SHARES)], rows)
    lines += ["", f"![losses over the time of training]({picture})"]
    for kind in KINDS:
        rows = []
        for title, note, results in answering(runs):
            figures = results["kinds"][kind]
            loss = "" if figures["loss"] is None else f"{figures['loss']:.3f}"
            rows.append([title, note, *(with_interval(figures[name]) for name in FIGURES), loss])
        lines += [
            "",
            f"### Blanks: {kind}",
            "",
            *markdown_table(["rival", "length", *FIGURES.values(), "loss per target"], rows),
        ]
    rows = [[title, note, f"{results['answered_tokens_per_second']:,.0f}"] for title, note, results in answering(runs)]
    lines += ["", "### Answering", "", *markdown_table(["rival", "length", "tokens/s"], rows)]
    lines += ["", "### Some answers", "", "Evenly spaced among the blanks, of the first seed; none is left out.", ""]
    titles = [run["title"] for run in runs.values()]
    rows = []
    for answered in zip(*(run["results"]["examples"] for run in runs.values())):
        one = answered[0]
        texts = [f"{one['before']} ____ {one['after']}", one["truth"], *(each["answer"] for each in answered)]
        rows.append([_cell(text) for text in texts])
    return [*lines, *markdown_table(["context", "truth", *titles], rows)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _loss_at(curve: Sequence[Sequence[float]], share: float) -> float:
    """Return the loss of the first point that lies at ``share`` of the updates or behind it."""
    last = curve[-1][0]
    return next(loss for updates, loss in curve if updates >= share * last)


def draw(runs: Mapping[str, Any], picture: Path) -> None:
    """Draw the loss of each rival's own objective over the processor's time; say so where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {picture.name}: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for run in runs.values():
        updates, losses = zip(*run["curve"])
        axes.plot([run["seconds"] * number / run["updates"] for number in updates], losses, label=run["title"])
    axes.set_xlabel("training, seconds of the processor")
    axes.set_ylabel("loss of its own objective")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def write_page(folder: Path, page: Path) -> int:
    """Put the results in ``folder`` into ``page``, a JSON file with the curves and a picture of them beside it.

    Raises ValueError when there are none, when they are of different experiments, or when the page lacks its marks.
    """
    files = {name: folder / name / RESULT for name in RIVALS}
    runs: dict[str, dict[str, Any]] = {name: read_json(file) for name, file in files.items() if file.is_file()}
    runs = {name: run for name, run in runs.items() if "variants" in run}
    if not runs:
        raise ValueError(f"{folder}: no results yet; run python -m benchmarks infilling RIVAL first")
    first, *others = runs
    for other in others:
        if runs[other]["experiment"] != runs[first]["experiment"]:
            raise ValueError(f"{files[other]} is of another experiment than {files[first]}; measure them alike")
    lines = lines_of_page(runs, page.with_suffix(".png").name)
    write_results(page, lines, command=COMMAND)
    write_whole(page.with_suffix(".json"), json_text(runs))
    draw(runs, page.with_suffix(".png"))
    print("\n".join(lines))
    return 0
