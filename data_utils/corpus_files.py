"""Read the rows of corpus files: .jsonl, .json, .txt, .parquet, each also as .gz or .zst.

A row knows the file and line it came from, so that whatever is wrong with it can be named.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".txt", ".parquet")


@dataclass(frozen=True)
class Row:
    """One raw row: what it holds, or why it could not be read."""

    file: Path
    line: int  # counted from 1; for .json and .parquet the number of the record
    value: Any = None
    problem: str | None = None

    @property
    def place(self) -> str:
        """Return ``file:line``."""
        return f"{self.file}:{self.line}"


def file_format(path: Path) -> str:
    """Return the suffix that tells how ``path`` is read, without that of a compression; '' when unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else ""


def find_files(pattern: str) -> list[Path]:
    """Return the files that a path, a folder (recursively) or a glob names, sorted.

    Raises ValueError when there are none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    else:
        files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not files:
        raise ValueError(f"{pattern}: no such file, and no files match it")
    return files


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{path}: reading .zst needs zstandard: pip install zstandard") from error
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb")))
    return path.open("rb")


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the lines of a text file without their line ends, blank ones left out."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                yield Row(path, number, problem=f"not UTF-8 ({error.reason})")
                continue
            if text.strip():
                yield Row(path, number, text)


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield the JSON objects of a file with one on every line, blank lines left out."""
    for row in read_lines(path):
        if row.problem:
            yield row
            continue
        try:
            yield Row(path, row.line, json.loads(row.value))
        except json.JSONDecodeError as error:
            yield Row(path, row.line, problem=f"not JSON ({error.msg}, column {error.colno})")


def read_json(path: Path) -> Iterator[Row]:
    """Yield the records of a .json file: a list, an object with a list, or else JSON lines."""
    with _open(path) as file:
        start = file.read(4096).lstrip()
    if start.startswith(b"{"):
        first_line = start.split(b"\n", 1)[0]
        try:
            value = json.loads(first_line)
            if not any(isinstance(item, list) for item in value.values()):
                yield from read_json_lines(path)
                return
        except (json.JSONDecodeError, UnicodeDecodeError):
            pass  # one object over several lines
    try:
        with _open(path) as file:
            value = json.load(io.TextIOWrapper(file, encoding="utf-8"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from read_json_lines(path)
            return
        yield Row(path, error.lineno, problem=f"not JSON ({error.msg}, column {error.colno})")
        return
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    for number, record in enumerate(value, start=1):
        yield Row(path, number, record)


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the records of a Parquet file, a batch in memory at a time."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from error
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
        for record in batch.to_pylist():
            number += 1
            yield Row(path, number, record)


READERS = {".jsonl": read_json_lines, ".json": read_json, ".txt": read_lines, ".parquet": read_parquet}


def read_rows(path: Path, *, json_rows: bool | None = None) -> Iterator[Row]:
    """Yield the rows of one file by its suffix.

    ``json_rows`` says what a file without a known suffix holds: JSON lines, plain lines, or (None) nothing we know.
    Raises ValueError for a suffix that is not known.
    """
    suffix = file_format(path)
    if not suffix:
        if json_rows is None:
            raise ValueError(
                f"{path}: unknown kind of file; known are {', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"
            )
        suffix = ".jsonl" if json_rows else ".txt"
    try:
        yield from READERS[suffix](path)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: damaged compression ({error}); copy or download it again") from error
