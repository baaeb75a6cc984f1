"""Records of data files: JSON lines, tab-separated and comma-separated values, and the labels in them.

Every file is UTF-8, and its lines end with a line feed. What is wrong with a file is said with its name and line.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from data_utils.corpora.named import PLAIN_PUNCTUATION
from files import reading
from files.reading import REQUIRED, described, lines_of, missing, parse_json, value_of

Kind = TypeVar("Kind")
logger = logging.getLogger("glm")

LARGEST_FIELD = 2**31 - 1  # characters of a field of comma-separated values
NO_LABEL = -1  # what some files write for an unlabelled row
MOST_SHOWN = 20  # labels in a message
TRUTH = {"0": "false", "1": "true"}


class MissingFileError(ValueError):
    """A split's file is not there."""


def read_label(value: Any, labels: Iterable[Any], *, place: str, name: str = "label") -> Any | None:
    """Return the one of ``labels`` that a file's value stands for; None for an unlabelled row.

    A label is written as it is, in any case, as text or as number. Of two labels that are false and true (or 0 and 1)
    both ways of writing go. Null, an empty text, and -1 where that is no label of the task, say that there is none.
    Raises ValueError, with ``place`` and the field's ``name``, for anything else.
    """
    known = list(labels)
    for label in known:
        if type(label) is type(value) and label == value:
            return label
    if value is None:
        return None
    written = None
    if isinstance(value, float):
        written = str(int(value)) if value.is_integer() else None
    elif isinstance(value, (str, int)):
        written = str(value).strip().casefold()
    if written is not None:
        names = [str(label).casefold() for label in known]
        truth = set(names) in ({"false", "true"}, {"0", "1"})
        if truth:
            names, written = [TRUTH.get(one, one) for one in names], TRUTH.get(written, written)
        if names.count(written) == 1:
            return known[names.index(written)]
        if written in ("", str(NO_LABEL)):
            return None
    shown = ", ".join(map(str, known[:MOST_SHOWN])) + ", ..." * (len(known) > MOST_SHOWN)
    raise ValueError(f"{place}: {name} is {described(value)}; the labels are {shown}")


@dataclass(frozen=True)
class Record:
    """One row of a file, or an object inside one.

    Attributes:
        path, line: where it stands; lines count from 1, and 0 is the file as a whole.
        number: which row (or entry of a list) it is, from 0.
        fields: by name, or by column where columns have no names.
        within: where it stands in its row: ``passage.questions[1]``.
    """

    path: Path
    line: int
    number: int
    fields: Mapping[Any, Any]
    within: str = ""

    @cached_property
    def where(self) -> str:
        """Return where it stands in its file."""
        if not self.line:
            return self.within
        return f"line {self.line}, {self.within}" if self.within else f"line {self.line}"

    @cached_property
    def place(self) -> str:
        """Return file and place for messages."""
        return f"{self.path}, {self.where}" if self.where else str(self.path)

    def __getitem__(self, key: Any) -> Any:
        """Return a field. Raise ValueError with its place when the row does not have it, or has null there."""
        value = self.fields.get(key)
        if value is None:
            raise self.error(self.without(key))
        return value

    def get(self, key: Any) -> Any:
        """Return a field, None where the row does not have it."""
        return self.fields.get(key)

    def without(self, key: Any) -> str:
        """Return what to say of the field that is missing."""
        if isinstance(key, int):
            return f"{len(self.fields)} columns, at least {key + 1} are needed"
        return missing(self.fields, key)

    def value(
        self,
        key: Any,
        kind: type[Kind],
        *,
        default: Any = REQUIRED,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Kind:
        """Return a field of a kind as ``files.reading.value_of`` does."""
        if default is REQUIRED and isinstance(key, int):
            self[key]  # names columns as people count them
        return value_of(self.fields, key, kind, place=self.place, default=default, at_least=at_least, at_most=at_most)

    def text(self, key: Any, *, default: Any = REQUIRED) -> str:
        """Return a field that is a text. Raise ValueError for anything else."""
        return self.value(key, str, default=default)

    def texts(self, key: Any) -> list[str]:
        """Return a field that is a list of texts. Raise ValueError for anything else, and for an empty one."""
        values = self.value(key, list)
        if not values or not all(isinstance(value, str) for value in values):
            raise self.error(f"{key} is {described(values)}; a list of texts is needed")
        return values

    def row(self, key: str) -> Record:
        """Return a field that is an object."""
        return self._inside(self.value(key, dict), key, number=0)

    def rows(self, key: str, *, default: Any = REQUIRED) -> list[Record]:
        """Return the objects that a field lists. Raise ValueError for anything else."""
        values = self.value(key, list, default=default)
        return [self._inside(value, f"{key}[{number}]", number=number) for number, value in enumerate(values)]

    def _inside(self, value: Any, name: str, *, number: int) -> Record:
        record = Record(self.path, self.line, number, {}, f"{self.within}.{name}" if self.within else name)
        return replace(record, fields=_object(value, place=record.place))

    def label(self, labels: Iterable[Any], key: Any = "label") -> Any | None:
        """Return the label in a field as ``read_label`` does."""
        return read_label(self.get(key), labels, place=self.place, name=str(key))

    def error(self, problem: str) -> ValueError:
        """Return an error that names the row."""
        return ValueError(f"{self.place}: {problem}")


class Identities:
    """The ids of a file: a row whose id is missing or repeated goes by its place, and ``report`` says so."""

    def __init__(self) -> None:
        self._places: dict[tuple[Any, ...], str] = {}
        self._replaced: list[str] = []

    def unique(self, value: Any, record: Record, *, name: str = "idx", among: tuple[Any, ...] = ()) -> Any:
        """Return ``value``, or where the record stands if that is no id or one of another row.

        ``among``: ids are told apart within it (questions within their passage). Raises ValueError for an id that is
        neither text nor number.
        """
        if value is None or value == "":
            return self._by_place(record, f"no {name!r}", among)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise record.error(f"{name} is {described(value)}; a text or a whole number is needed")
        first = self._places.setdefault((*among, value), record.place)
        if first != record.place:
            first = first.removeprefix(f"{record.path}, ")
            return self._by_place(record, f"{name} {described(value)} is that of {first}, too", among)
        return value

    def _by_place(self, record: Record, problem: str, among: tuple[Any, ...]) -> str:
        self._replaced.append(f"{record.place}: {problem}")
        name = record.place if (*among, record.where) in self._places else record.where  # RACE has many files
        self._places[(*among, name)] = record.place
        return name

    def report(self) -> None:
        """Warn of the ids that were replaced."""
        if self._replaced:
            others = f" (and {len(self._replaced) - 1:,} more)" if len(self._replaced) > 1 else ""
            logger.warning(f"{self._replaced[0]}{others}; such rows are told apart by their place")


def read_text(path: Path, *, hint: str = "--data-dir names the folder that holds it") -> str:
    """Return the text of a file. Raise ValueError, with a file that may be meant, when it is missing or not UTF-8."""
    if not path.exists():
        there = [file.name for file in path.parent.glob("*")]
        near = get_close_matches(path.name.casefold(), [name.casefold() for name in there], n=1, cutoff=0.8)
        meant = next((name for name in there if [name.casefold()] == near), None)
        raise MissingFileError(f"{path}: no such file; " + (f"did you mean {meant}?" if meant else hint))
    return reading.read_text(path)


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON lines file; blank lines are skipped."""
    number = 0
    for line, text in enumerate(lines_of(read_text(path)), start=1):
        if not text.strip():
            continue
        place = f"{path}, line {line}"
        yield Record(path, line, number, _object(parse_json(text, place=place), place=place))
        number += 1


def read_document(path: Path) -> Record:
    """Return a file that is one JSON object."""
    return Record(path, 0, 0, _object(parse_json(read_text(path), place=str(path)), place=str(path)))


def _object(value: Any, *, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: a JSON object is needed, found {described(value)}")
    return value


def check_offset(record: Record, text: str, span: str, start: str) -> tuple[str, int]:
    """Return the fields ``span``, a text, and ``start``, the place of its first character in ``text``.

    Raises ValueError when something else stands there.
    """
    words, place = record.text(span), record.value(start, int)
    if place < 0 or not text.startswith(words, place):
        where = f"it stands at {text.index(words)}" if words in text else "it stands nowhere in the text"
        found = text[place : place + len(words)] if place >= 0 else ""
        raise record.error(f"{start} is {place}, where {described(found)} stands, not {described(words)}; {where}")
    return words, place


def read_tab_separated(path: Path, *, header: bool = True) -> Iterator[Record]:
    """Yield the rows of a tab-separated file; quotes have no meaning. With ``header`` fields have names.

    All rows have as many columns as the first: a tab inside a text is an error.
    """
    lines = enumerate(lines_of(read_text(path)), start=1)
    rows = ((line, text.split("\t")) for line, text in lines if text)
    return _table(path, rows, header=header, separator="a tab")


def read_comma_separated(path: Path, *, header: bool = False) -> Iterator[Record]:
    """Yield the rows of a comma-separated file; fields may be quoted, and hold lines then. Those of a ``header`` have
    names.

    All rows have as many columns as the first.
    """
    return _table(path, _comma_separated(path), header=header, separator="a comma outside of quotes")


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with the lines that they begin in."""
    csv.field_size_limit(LARGEST_FIELD)
    lines = [f"{line}\n" for line in read_text(path).split("\n")]  # with the carriage returns of quoted texts
    reader = csv.reader(lines, strict=True)
    start = 1
    try:
        for values in reader:
            if values:
                yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        problem = f"not comma-separated values ({error}); a quote inside of quotes is written twice"
        if "\r" in lines[reader.line_num - 1].removesuffix("\r\n"):
            problem = "a carriage return outside of quotes; lines end with a line feed"
        raise ValueError(f"{path}, line {start}: {problem}") from None


def _table(path: Path, rows: Iterable[tuple[int, Sequence[str]]], *, header: bool, separator: str) -> Iterator[Record]:
    """Yield rows, given with their lines, as records."""
    names: Sequence[Any] | None = None
    first, number = 0, 0
    for line, values in rows:
        if names is None:
            names, first = (values if header else range(len(values))), line
            if twice := [name for name in values if header and values.count(name) > 1]:
                raise ValueError(f"{path}, line {line}: two columns are called {twice[0]!r}")
            if header:
                continue
        if len(values) != len(names):
            raise ValueError(
                f"{path}, line {line}: {len(values)} columns, line {first} has {len(names)}; {separator} stands "
                "between two columns and nowhere else"
            )
        yield Record(path, line, number, dict(zip(names, values)))
        number += 1


def standardize(text: str) -> str:
    """Return ``text`` with plain quotes and dashes for typographic ones; nothing else changes."""
    return text.translate(PLAIN_PUNCTUATION)
