"""Predictions as the files that the benchmarks' sites take: JSON objects, one a line (docs/formats.md#predictions).

A format is called with the labels, the examples, and their predicted classes (or choices) in the same order, and
returns the file's objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tasks.superglue.readers import InputExample

Entry: TypeAlias = "dict[str, Any]"
Format: TypeAlias = "Callable[[Sequence[Any], Sequence[InputExample], Sequence[Any]], list[Entry]]"


def class_entries(labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per example with the label of its class."""
    return [{"idx": e.idx, "label": labels[p]} for e, p in zip(examples, predictions, strict=True)]


def choice_entries(labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per example with the number of its choice."""
    return [{"idx": e.idx, "label": int(p)} for e, p in zip(examples, predictions, strict=True)]


def sorted_entries(labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return the entries of classes in the order of ``idx``."""
    return sorted(class_entries(labels, examples, predictions), key=lambda entry: entry["idx"])


def candidate_entries(
    labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]
) -> list[Entry]:
    """Return one entry per question with the text of the predicted candidate."""
    return [
        {"idx": e.meta["question_idx"], "label": e.meta["candidates"][p]}
        for e, p in zip(examples, predictions, strict=True)
    ]


def passage_entries(labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per passage, its questions and their answers inside it, as they come first."""
    passages: dict[Any, dict[Any, list[Entry]]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        meta = example.meta
        answers = passages.setdefault(meta["passage_idx"], {}).setdefault(meta["question_idx"], [])
        answers.append({"idx": meta["answer_idx"], "label": int(prediction)})
    return [
        {
            "idx": passage,
            "passage": {"questions": [{"idx": index, "answers": answers} for index, answers in asked.items()]},
        }
        for passage, asked in passages.items()
    ]


def text_entries(labels: Sequence[Any], examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per question with the predicted text, which stands in the place of a class."""
    return [{"idx": e.guid, "prediction_text": p} for e, p in zip(examples, predictions, strict=True)]


def prediction_lines(
    entries: Sequence[Entry],
    examples: Sequence[InputExample],
    *,
    index_key: str = "idx",
    compatible: bool = False,
) -> list[str]:
    """Return the lines of a prediction file.

    Examples without an index of their own are named by their guid; ``compatible`` writes the original's -1 for all of
    them. ``index_key`` is what the site calls the index (``id`` for CLUE's).
    """
    if not compatible and any(entry["idx"] == -1 for entry in entries):
        entries = [
            {**entry, "idx": e.guid if e.idx == -1 else e.idx} for entry, e in zip(entries, examples, strict=True)
        ]
    return [json.dumps({index_key if key == "idx" else key: value for key, value in e.items()}) for e in entries]
