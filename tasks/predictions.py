"""Predictions as the files that the benchmarks' sites take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.examples import InputExample

if TYPE_CHECKING:
    from tasks.registry import Task

Entry = dict[str, Any]


def class_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per example with the label of its class."""
    labels = task.labels
    return [{"idx": e.idx, "label": labels[p]} for e, p in zip(examples, predictions, strict=True)]


def choice_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per example with the number of its choice."""
    return [{"idx": e.idx, "label": int(p)} for e, p in zip(examples, predictions, strict=True)]


def sorted_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return the entries of classes in the order of ``idx``."""
    return sorted(class_entries(task, examples, predictions), key=lambda entry: entry["idx"])


def candidate_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per question with the text of the chosen candidate."""
    return [
        {"idx": e.meta["question_idx"], "label": e.meta["candidates"][p]}
        for e, p in zip(examples, predictions, strict=True)
    ]


def passage_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per passage, its questions and their answers inside it, as they come first."""
    passages: dict[Any, dict[Any, list[Entry]]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        meta = example.meta
        answers = passages.setdefault(meta["passage_idx"], {}).setdefault(meta["question_idx"], [])
        answers.append({"idx": meta["answer_idx"], "label": int(prediction)})
    return [
        {
            "idx": passage,
            "passage": {"questions": [{"idx": question, "answers": found} for question, found in questions.items()]},
        }
        for passage, questions in passages.items()
    ]


def text_entries(task: Task, examples: Sequence[InputExample], predictions: Sequence[Any]) -> list[Entry]:
    """Return one entry per question with the predicted text."""
    return [{"idx": e.guid, "prediction_text": p} for e, p in zip(examples, predictions, strict=True)]


FORMATS: Mapping[str, Callable[[Task, Sequence[InputExample], Sequence[Any]], list[Entry]]] = {
    "copa": choice_entries,
    "multichoice": choice_entries,
    "multirc": passage_entries,
    "record": candidate_entries,
    "squad": text_entries,
    "afqmc": sorted_entries,
    "tnews": sorted_entries,
}


def prediction_lines(
    task: Task,
    examples: Sequence[InputExample],
    predictions: Sequence[Any],
    *,
    index_key: str = "idx",
    compatible: bool = False,
) -> list[str]:
    """Return the lines of a prediction file: JSON objects.

    ``predictions`` are classes or choices, one per example in the same order (texts for ``squad``). Examples without an
    index of their own are named by their guid; ``compatible`` writes the original's -1 for all of them. ``index_key``
    is what the site calls the index (``id`` for CLUE's).
    """
    entries = FORMATS.get(task.name, class_entries)(task, examples, predictions)
    if not compatible and any(entry["idx"] == -1 for entry in entries):
        assert len(entries) == len(examples), task.name
        entries = [{**entry, "idx": e.guid if e.idx == -1 else e.idx} for entry, e in zip(entries, examples)]
    if index_key != "idx":
        entries = [{index_key if key == "idx" else key: value for key, value in e.items()} for e in entries]
    return [json.dumps(entry) for entry in entries]
