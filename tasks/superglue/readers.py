"""The files of a task become examples: what a task's files hold, before any pattern or tokenizer.

A task's own files are a subclass of ``DataProcessor`` (``processors.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from files.reading import described
from tasks.readers import Identities, Record, read_json_lines, read_tab_separated

logger = logging.getLogger("glm")
SPLITS = ("train", "dev", "test", "unlabeled")
# The file of each split, and the name that its examples carry in their guid; None for a split that is empty.
SplitFiles: TypeAlias = "Mapping[str, tuple[str, str] | None]"


@dataclass(frozen=True)
class InputExample:
    """One example of a task.

    Attributes:
        guid: name within the split, such as ``dev-17``; predictions are collected by it.
        text_a, text_b: the texts that patterns are made of.
        label: one of the task's labels, None where the file has none.
        meta: what else the task's patterns and metrics need.
        idx: the name that the prediction file gives; -1 when the data has none.
        num_choices: number of answers to choose from, where it varies from example to example.
        language: that its file is in, empty where tasks have one language.
        source: file and line, for messages.
        group: examples of one group count together (MultiRC's answers to one question).
    """

    guid: str | int
    text_a: str
    text_b: Any = None
    label: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    idx: Any = -1
    num_choices: int = 1
    language: str = ""
    source: str = ""
    group: Any = None


@dataclass(frozen=True)
class DataOptions:
    """How a task's files are read.

    Attributes:
        few_superglue: the files of FewGLUE: dev is ``dev32.jsonl`` and test is ``val.jsonl``.
        cloze_eval: examples are scored by the language model, not by a classification head.
        wsc_negative: WSC with a list of candidates.
        for_training: the examples are for a loss, not for a metric: ReCoRD has one example per answer then.
        languages: those that are evaluated; empty for all that there are files of.
        dev_fraction: which share of the development examples of a task of single words (panx) is evaluated.
        needs_labels: a row without a label is an error.
    """

    few_superglue: bool = False
    cloze_eval: bool = True
    wsc_negative: bool = False
    for_training: bool = False
    languages: tuple[str, ...] = ()
    dev_fraction: float = 1.0
    needs_labels: bool = False


DEFAULT_OPTIONS = DataOptions()


def split_files(**files: str | tuple[str, str] | None) -> SplitFiles:
    """Return the file of each split; a pair also says the name in the guids, which is the split's otherwise."""
    return {split: (file, split) if isinstance(file, str) else file for split, file in files.items()}


def same_named_files(suffix: str) -> SplitFiles:
    """Return files named after their split: ``train``, ``dev`` and ``test``; there are no unlabelled examples."""
    return split_files(train=f"train{suffix}", dev=f"dev{suffix}", test=f"test{suffix}", unlabeled=None)


SUPERGLUE_FILES = split_files(train="train.jsonl", dev="val.jsonl", test="test.jsonl", unlabeled="unlabeled.jsonl")
FEW_SUPERGLUE_FILES = split_files(dev="dev32.jsonl", test="val.jsonl")
NO_FILES = split_files()


class DataProcessor:
    """Turn the files of a task into examples.

    Attributes:
        labels: class names; their order is that of the classes.
        files: the file of each split; a split that is None is empty, one that is not there is an error.
        few_files: what ``few_superglue`` puts in their place.
    """

    labels: Sequence[Any] = ()
    files: SplitFiles = SUPERGLUE_FILES
    few_files: SplitFiles = FEW_SUPERGLUE_FILES

    def __init__(self, name: str, options: DataOptions = DEFAULT_OPTIONS) -> None:
        self.name = name
        self.options = options
        self.identities = Identities()
        self.lacking = ""

    def examples(self, data_dir: str | Path | None, split: str) -> list[InputExample]:
        """Read a split; examples with fewer choices come first, otherwise the file's order is kept.

        Raises ValueError for a split that the task does not have, a missing file, and a record that is malformed or
        whose label is not among the labels.
        """
        files = {**self.files, **self.few_files} if self.options.few_superglue else self.files
        if split not in files:
            known = ", ".join(name for name in SPLITS if files.get(name))
            raise ValueError(f"{self.name} has no split {split!r}; it has {known}")
        file = files[split]
        if file is None:
            return []
        assert data_dir is not None, self.name
        name, set_type = file
        return sorted(self.read_file(Path(data_dir) / name, set_type), key=lambda example: example.num_choices)

    def read_file(self, path: Path, set_type: str) -> list[InputExample]:
        """Return the examples of a file in its order. Say what its rows lack."""
        self.identities, self.lacking = Identities(), ""
        convert = self.converter(set_type)
        examples: list[InputExample] = []
        for record in self.records(path):
            for example in _converted(convert, record, self.name):
                examples.append(example if example.source else replace(example, source=record.place))
        if self.options.for_training:  # no loss needs ids, and what has no label was refused or is evaluated, too
            return self.completed(examples, set_type)
        self.identities.report()
        if unlabelled := [example.source for example in examples if example.label is None]:
            logger.info(
                f"note: {path}: {len(unlabelled):,} of {len(examples):,} examples have no label (the first: "
                f"{unlabelled[0].removeprefix(f'{path}, ')}{self.lacking}); metrics leave them out"
            )
        return self.completed(examples, set_type)

    def has_split(self, split: str) -> bool:
        """Return whether the task has such a split, whatever files there are."""
        return self.files.get(split) is not None

    def records(self, path: Path) -> Iterable[Record]:
        """Return the records of a file."""
        return read_json_lines(path)

    def converter(self, set_type: str) -> Callable[[Record], Iterable[InputExample]]:
        """Return what turns the records of one file, in order, into examples."""
        return lambda record: self.convert(record, set_type)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        """Return the examples of a record."""
        raise AssertionError(f"{type(self).__name__} converts no records")

    def completed(self, examples: list[InputExample], set_type: str) -> list[InputExample]:
        """Return the examples of a file with those that are made from them."""
        return examples

    def label(self, record: Record, labels: Iterable[Any] | None = None, *, key: Any = "label") -> Any:
        """Return the label in a field of a record, None for an unlabelled one.

        Raises ValueError for a label that is none of ``labels`` (the task's unless given), and for an unlabelled
        record where labels are needed.
        """
        label = record.label(self.labels if labels is None else labels, key)
        if label is None and (self.options.needs_labels or not self.lacking):
            given = record.get(key)
            problem = record.without(key) if given is None else f"{key} {described(given)} says that there is none"
            self.unlabelled(record, problem)
        return label

    def unlabelled(self, record: Record, problem: str) -> None:
        """Note that a record has no label. Raise ValueError where it needs one."""
        if self.options.needs_labels:
            raise record.error(f"no label to train on: {problem}")
        self.lacking = self.lacking or f": {problem}"

    def index(self, record: Record, *, numeric: bool = False) -> Any:
        """Return the record's ``idx``, or its place where that is missing or another record's.

        ``numeric``: texts become numbers, or the record's number where they are none.
        """
        value = record.get("idx")
        if numeric and isinstance(value, str):
            try:
                value = int(value)
            except ValueError:
                value = record.number
        return self.identities.unique(value, record)


def _converted(
    convert: Callable[[Record], Iterable[InputExample]], record: Record, name: str
) -> Iterator[InputExample]:
    """Yield what ``convert`` makes of a record; whatever it stumbles over is an error that names the record."""
    try:
        yield from convert(record)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise record.error(f"not a row of {name} ({type(error).__name__}: {error})") from error


class TableProcessor(DataProcessor):
    """Records with one text or two, and a label: most tasks are nothing else.

    Attributes:
        text_a, text_b: names of the fields; None for tasks of one text.
        label_field: name of the label's field.
        clean: applied to both texts.
        read: returns the records of a file.
        indexed: the number of a record is the example's ``idx``.
    """

    text_a: str = ""
    text_b: str | None = None
    label_field: str = "label"
    clean: Callable[[str], str] = staticmethod(lambda text: text)
    read: Callable[[Path], Iterable[Record]] = staticmethod(read_tab_separated)
    indexed: bool = False
    few_files = NO_FILES

    def records(self, path: Path) -> Iterable[Record]:
        return type(self).read(path)

    def convert(self, record: Record, set_type: str) -> Iterable[InputExample]:
        clean = type(self).clean
        yield InputExample(
            guid=f"{set_type}-{record.number}",
            text_a=clean(record.text(self.text_a)),
            text_b=None if self.text_b is None else clean(record.text(self.text_b)),
            label=self.label(record, key=self.label_field),
            idx=record.number if self.indexed else -1,
        )
