"""Records of data files: JSON lines, tab-separated and comma-separated values.

Every file is UTF-8. What is wrong with a file is said with its name and line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.corpora.named import PLAIN_PUNCTUATION


class MissingFileError(ValueError):
    """A split's file is not there."""


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Attributes:
        path, line: where it stands; lines count from 1.
        number: which row it is, from 0.
        fields: by name, or by column.
    """

    path: Path
    line: int
    number: int
    fields: Mapping[str, Any] | Sequence[str]

    def __getitem__(self, key: Any) -> Any:
        """Return a field. Raise ValueError with file and line when the row does not have it."""
        try:
            return self.fields[key]
        except (KeyError, IndexError):
            pass
        if isinstance(self.fields, Mapping):
            raise self.error(f"no field {key!r}; the row has {', '.join(self.fields) or 'none'}")
        raise self.error(f"{len(self.fields)} columns, at least {key + 1} are needed")

    def get(self, key: str) -> Any:
        """Return a field, None where the row does not have it."""
        assert isinstance(self.fields, Mapping)
        return self.fields.get(key)

    def text(self, key: Any) -> str:
        """Return a field that is a text. Raise ValueError for anything else."""
        value = self[key]
        if not isinstance(value, str):
            raise self.error(f"{key!r} is {value!r}, not a text")
        return value

    def error(self, problem: str) -> ValueError:
        """Return an error that names the row."""
        return ValueError(f"{self.path}, line {self.line}: {problem}")


def read_text(path: Path) -> str:
    """Return the text of a file. Raise ValueError when it is missing or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; --data-dir names the folder that holds it") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text") from None


def read_json_lines(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON lines file; blank lines are skipped."""
    number = 0
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from None
        record = Record(path, line, number, fields)
        if not isinstance(fields, dict):
            raise record.error("not a JSON object")
        yield record
        number += 1


def read_tab_separated(path: Path, *, header: bool = True) -> Iterator[Record]:
    """Yield the rows of a tab-separated file; quotes have no meaning. With ``header`` fields have names."""
    names: list[str] | None = None
    number = 0
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        values = text.removesuffix("\r").split("\t")
        if values == [""]:
            continue
        if header and names is None:
            names = values
            continue
        yield Record(path, line, number, values if names is None else dict(zip(names, values)))
        number += 1


def read_comma_separated(path: Path) -> Iterator[Record]:
    """Yield the rows of a comma-separated file without header; fields may be quoted."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    number = start = 0
    try:
        for values in reader:
            if values:
                yield Record(path, start + 1, number, values)
                number += 1
            start = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {start + 1}: not comma-separated values ({error})") from None


def standardize(text: str) -> str:
    """Return ``text`` with plain quotes and dashes for typographic ones; nothing else changes."""
    return text.translate(PLAIN_PUNCTUATION)
