"""Declare a task of a common kind in one entry: a text, a pair of texts, or a text with choices.

``tasks/superglue/README.md`` works an example through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks.metrics import METRICS
from tasks.readers import Record, read_comma_separated, read_json_lines, read_tab_separated
from tasks.superglue.patterns import TemplatePVP
from tasks.superglue.readers import DEFAULT_OPTIONS, DataOptions, DataProcessor, InputExample, split_files
from tasks.superglue.samples import choice_texts, plain_texts
from tasks.superglue.task import Task

READERS = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_lines,
    ".tsv": read_tab_separated,
    ".csv": read_comma_separated,
}
Field = str | int  # a name, or the column of a file without names
Words = Mapping[Any, str]


@dataclass(frozen=True)
class Fields:
    """Where an example's parts stand in a row.

    Attributes:
        text_a, text_b: the texts; ``text_b`` is None for tasks of one text.
        label: the class, or the number of the right choice.
        choices: the field that lists the choices, or the fields of the single choices; None for other kinds of tasks.
        index: what the prediction file calls the example; the number of the row where it is missing.
    """

    text_a: Field
    text_b: Field | None = None
    label: Field = "label"
    choices: Field | tuple[Field, ...] | None = None
    index: Field = "idx"


class DeclaredProcessor(DataProcessor):
    """Reads the files of a declared task; the endings of their names, in any case, tell their kind (``READERS``)."""

    def __init__(
        self,
        name: str,
        options: DataOptions,
        *,
        labels: Sequence[Any],
        fields: Fields,
        files: Mapping[str, str],
    ) -> None:
        super().__init__(name, options)
        self.labels = tuple(labels)
        self.files = split_files(**files)
        self.few_files = {}
        self.fields = fields
        for file in files.values():
            if Path(file).suffix.lower() not in READERS:
                raise ValueError(f"task {name}: {file} is no {', '.join(READERS)} file")

    def records(self, path: Path) -> Iterable[Record]:
        return READERS[path.suffix.lower()](path)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        fields = self.fields
        meta: dict[str, Any] = {}
        if isinstance(fields.choices, tuple):
            meta["choices"] = [record.text(field) for field in fields.choices]
        elif fields.choices is not None:
            meta["choices"] = record.texts(fields.choices)
        count = len(meta.get("choices", self.labels))
        if count > len(self.labels):
            raise record.error(f"{count} choices; {self.name} has labels for {len(self.labels)}")
        index = record.get(fields.index)
        yield InputExample(
            guid=f"{set_type}-{record.number}",
            text_a=record.text(fields.text_a),
            text_b=None if fields.text_b is None else record.text(fields.text_b),
            label=self.label(record, self.labels[:count], key=fields.label),
            meta=meta,
            idx=record.number if index is None else self.identities.unique(index, record, name=str(fields.index)),
        )


def declare(
    name: str,
    *,
    fields: Fields,
    labels: Sequence[Any],
    patterns: Sequence[str],
    words: Words | Sequence[Words] = (),
    metrics: Sequence[str] = ("accuracy",),
    files: Mapping[str, str] | None = None,
    multi_token: bool = False,
) -> Task:
    """Return a task.

    Args:
        name: in lower case.
        fields: where texts, label and choices stand in a row.
        labels: the classes in order; for choices the numbers that the label may have.
        patterns: templates, see ``tasks.superglue.patterns.TemplatePVP``.
        words: the word of every label, its leading blank included: one table, or one per pattern. Choices need none.
        metrics: names in ``tasks.metrics.METRICS``; the first selects the best checkpoint.
        files: the file of each split; train.jsonl, dev.jsonl and test.jsonl unless given.
        multi_token: score words of several tokens.

    Raises ValueError for a pattern without mask, a label without word, a metric that does not exist, a file of no known
    kind.
    """
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"task {name}: no metric {unknown[0]!r}; choose among {', '.join(METRICS)}")
    has_choices = fields.choices is not None
    if not has_choices and not words:
        raise ValueError(f"task {name}: no words for its labels, and no choices")
    tables = (words,) if isinstance(words, Mapping) else tuple(words)
    pvp = partial(TemplatePVP, templates=patterns, words=tables, choices="choices" if has_choices else None)
    pvp(name, labels)  # says what is wrong now, not when the first example is read
    files = files or {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    processor = partial(DeclaredProcessor, labels=labels, fields=fields, files=files)
    processor(name, DEFAULT_OPTIONS)  # so does this
    return Task(
        name,
        processor,
        pvp,
        metrics=tuple(metrics),
        multi_token=multi_token,
        varying_choices=has_choices,
        choice_head=has_choices,
        head_texts=choice_texts if has_choices else plain_texts,
    )
