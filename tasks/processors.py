"""Read a task's files into examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from tasks.examples import SPLITS, DataOptions, InputExample
from tasks.readers import Row, read_json_lines, read_tab_separated


@dataclass(frozen=True)
class SplitFile:
    """The file of a split, and the name that its examples carry in their guid."""

    name: str
    set_type: str


SplitFiles: TypeAlias = "dict[str, SplitFile | None]"


def split_files(**files: str | tuple[str, str] | None) -> SplitFiles:
    """Return the file of each split; a pair also says the name in the guids, which is the split's otherwise."""

    def file_of(split: str, file: str | tuple[str, str] | None) -> SplitFile | None:
        if file is None:
            return None
        return SplitFile(file, split) if isinstance(file, str) else SplitFile(*file)

    return {split: file_of(split, file) for split, file in files.items()}


def same_named_files(suffix: str) -> SplitFiles:
    """Return files named after their split: ``train``, ``dev`` and ``test``; there are no unlabelled examples."""
    return split_files(train=f"train{suffix}", dev=f"dev{suffix}", test=f"test{suffix}", unlabeled=None)


SUPERGLUE_FILES = split_files(train="train.jsonl", dev="val.jsonl", test="test.jsonl", unlabeled="unlabeled.jsonl")
FEW_SUPERGLUE_FILES = split_files(dev="dev32.jsonl", test="val.jsonl")


NO_FILES = split_files()
DEFAULT_OPTIONS = DataOptions()


class DataProcessor:
    """Turn the files of a task into examples.

    Attributes:
        labels: class names; their order is that of the classes.
        files: the file of each split; a split that is None is empty, one that is not there is an error.
        few_files: what ``few_superglue`` puts in their place.
    """

    labels: ClassVar[tuple[Any, ...]] = ()
    files: ClassVar[Mapping[str, SplitFile | None]] = SUPERGLUE_FILES
    few_files: ClassVar[Mapping[str, SplitFile | None]] = FEW_SUPERGLUE_FILES

    def __init__(self, name: str, options: DataOptions = DEFAULT_OPTIONS) -> None:
        self.name = name
        self.options = options

    def examples(self, data_dir: str | Path, split: str) -> list[InputExample]:
        """Read a split; examples with fewer choices come first, otherwise the file's order is kept.

        Raises ValueError for a split that the task does not have, a missing file, and a row that is malformed or whose
        label is not among the labels.
        """
        file = self.file(split)
        if file is None:
            return []
        convert = self.converter(file.set_type)
        found: list[InputExample] = []
        for row in self.rows(Path(data_dir) / file.name):
            for example in _converted(convert, row, self.name):
                self.check_label(example, row)
                found.append(example)
        return sorted(self.completed(found, file.set_type), key=lambda example: example.num_choices)

    def has_split(self, split: str) -> bool:
        """Return whether the task has such a split, whatever files there are."""
        return self.files.get(split) is not None

    def file(self, split: str) -> SplitFile | None:
        """Return the file of a split. Raise ValueError for one that the task does not have."""
        files = {**self.files, **self.few_files} if self.options.few_superglue else self.files
        if split not in files:
            known = ", ".join(name for name in SPLITS if files.get(name))
            raise ValueError(f"{self.name} has no split {split!r}; it has {known}")
        return files[split]

    def rows(self, path: Path) -> Iterable[Row]:
        """Return the rows of a file."""
        return read_json_lines(path)

    def converter(self, set_type: str) -> Callable[[Row], Iterable[InputExample]]:
        """Return what turns the rows of one file, in order, into examples."""
        return lambda row: self.convert(row, set_type)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        """Return the examples of a row."""
        raise AssertionError(f"{type(self).__name__} converts no rows")

    def completed(self, examples: list[InputExample], set_type: str) -> list[InputExample]:
        """Return the examples of a file with those that are made from them."""
        return examples

    def check_label(self, example: InputExample, row: Row) -> None:
        """Raise ValueError for a label that the task does not have."""
        if example.label is not None and example.label not in self.labels:
            known = ", ".join(map(str, self.labels))
            raise row.error(f"label {example.label!r}; {self.name} has the labels {known}")


def _converted(convert: Callable[[Row], Iterable[InputExample]], row: Row, name: str) -> Iterator[InputExample]:
    """Yield what ``convert`` makes of a row; whatever it stumbles over is an error that names the row."""
    try:
        yield from convert(row)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise row.error(f"not a row of {name} ({type(error).__name__}: {error})") from error


def label_of(row: Row, key: str = "label") -> str | None:
    """Return a label as text, None where there is none; JSON's true and false are written as in JSON."""
    value = row.get(key)
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def index_of(row: Row) -> Any:
    """Return the row's ``idx``: texts become numbers, or the row's number where they are none."""
    value = row["idx"]
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        return row.number


class TableProcessor(DataProcessor):
    """Rows with one text or two, and a label: most tasks are nothing else.

    Attributes:
        text_a, text_b: names of the fields; None for tasks of one text.
        label: name of the label's field.
        clean: applied to both texts.
        read: returns the rows of a file.
        indexed: the number of a row is the example's ``idx``.
    """

    text_a: str = ""
    text_b: str | None = None
    label: str = "label"
    clean: Callable[[str], str] = staticmethod(lambda text: text)
    read: Callable[[Path], Iterable[Row]] = staticmethod(read_tab_separated)
    indexed: bool = False
    few_files: ClassVar[Mapping[str, SplitFile | None]] = NO_FILES

    def rows(self, path: Path) -> Iterable[Row]:
        return type(self).read(path)

    def convert(self, row: Row, set_type: str) -> Iterable[InputExample]:
        clean = type(self).clean
        yield InputExample(
            guid=f"{set_type}-{row.number}",
            text_a=clean(row.text(self.text_a)),
            text_b=None if self.text_b is None else clean(row.text(self.text_b)),
            label=label_of(row, self.label),
            idx=row.number if self.indexed else -1,
        )
