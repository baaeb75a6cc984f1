"""Read rows from raw corpus files: .jsonl, .json, .txt and .parquet, also compressed as .gz or .zst.

A row is what one document rule sees: a JSON object, a line of text, a parquet record. Files are read as a stream, in a
fixed order; lines are handed on as bytes, so that another process can decode and parse them. A row knows its file and
line; what cannot be read becomes a row with a ``problem``, and the caller decides whether that stops the run.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

COMPRESSIONS = (".gz", ".zst")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
KNOWN_SUFFIXES = (*JSON_LINES_SUFFIXES, ".json", *TEXT_SUFFIXES, ".parquet")
ROW_FORMATS = ("by name", "json lines", "text lines", "records")
TEXT_UNITS = ("line", "paragraph", "file")
NOT_CORPORA = (".lazy", ".scatter")  # folders of the original's token cache
SNIFFED_BYTES = 1 << 16
READ_BYTES = 1 << 20
PARQUET_ROWS = 256  # read at a time


@dataclass(frozen=True)
class Row:
    """One row of a corpus file.

    Attributes:
        file: the file.
        line: line number from 1 on; number of the record in parquet files.
        value: bytes of a line that is still to be parsed (see ``parse_value``), or what the row holds.
        problem: why it could not be read.
        position: bytes of the file that were read so far, for progress reports.
    """

    file: Path
    line: int
    value: Any = None
    problem: str | None = None
    position: int = 0

    @property
    def place(self) -> str:
        """Return ``file:line``."""
        return f"{self.file}:{self.line}"


def inner_suffix(path: Path) -> str:
    """Return the suffix that tells the format, below a compression suffix: ``a.jsonl.gz`` -> ``.jsonl``."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


def find_files(location: str | Path, *, any_suffix: bool = False) -> list[Path]:
    """List the files that a path means, sorted: itself, every file below a folder, or the matches of a glob.

    Args:
        location: file, folder or glob (``**`` included).
        any_suffix: take every file of a folder; otherwise only those whose suffix tells a format. Hidden files and
            folders, and token caches of the original, are left out.

    Raises:
        ValueError: nothing there.
    """
    path = Path(location)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_corpus_file(p.relative_to(path), any_suffix)]
        if not files:
            raise ValueError(f"folder {location} holds no corpus file ({', '.join(KNOWN_SUFFIXES)}, also .gz / .zst)")
        return files
    pattern = str(location)
    if not has_magic(pattern):
        raise ValueError(f"no such file or folder: {location}")
    files = [Path(p) for p in sorted(glob(pattern, recursive=True)) if Path(p).is_file()]
    if not files:
        raise ValueError(f"no file matches {location}")
    return files


def _is_corpus_file(relative: Path, any_suffix: bool) -> bool:
    if any(part.startswith(".") or part.endswith(NOT_CORPORA) for part in relative.parts):
        return False
    return any_suffix or inner_suffix(relative) in KNOWN_SUFFIXES


def read_rows(path: Path, *, row_format: str = "by name", text_unit: str = "line") -> Iterator[Row]:
    """Yield the rows of one file in order; blank lines are no rows.

    Args:
        path: the file.
        row_format: one of ``ROW_FORMATS``; parquet files are always read as such.
        text_unit: what of a text file is one row: a line, a paragraph (up to a blank line) or the whole file.

    Raises:
        ValueError: an unknown suffix, a missing optional package.
        OSError: a file that cannot be opened.
    """
    assert row_format in ROW_FORMATS and text_unit in TEXT_UNITS, (row_format, text_unit)
    suffix = inner_suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if row_format == "by name":
        if suffix in (*JSON_LINES_SUFFIXES, ".json"):
            row_format = "json lines"
        elif suffix in TEXT_SUFFIXES:
            row_format = "text lines"
        else:
            known = ", ".join(KNOWN_SUFFIXES)
            raise ValueError(f"{path}: unknown suffix {suffix!r}; known are {known}, also with .gz or .zst")
    if row_format == "json lines" and suffix == ".json":
        row_format = _sniff_json(path)
    if row_format == "text lines" and text_unit != "line":
        return _read_blocks(path, whole_file=text_unit == "file")
    if row_format in ("json lines", "text lines"):
        return _read_lines(path)
    if row_format == "one object":
        return _read_object(path)
    return _read_list(path)


def parse_value(row: Row, *, text_lines: bool = False) -> Any:
    """Return what a row holds: JSON, or text (``text_lines``, and every file with the suffix of a text file).

    Raises:
        ValueError: not UTF-8, not JSON, or the row's ``problem``; without file and line.
    """
    if row.problem is not None:
        raise ValueError(row.problem)
    if not isinstance(row.value, bytes):
        return row.value
    try:
        text = row.value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    return text if text_lines or inner_suffix(row.file) in TEXT_SUFFIXES else _parse_json(text)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        raise ValueError(f"not JSON that can be read ({type(error).__name__})") from None


# ------------------------------------------------------------------------------------------------------ streams


class _ZstandardReader(io.RawIOBase):
    """Decompress a .zst file (any number of frames) and notice when it ends too early."""

    def __init__(self, raw: io.BufferedReader) -> None:
        try:
            import zstandard
        except ImportError:
            raise ValueError("reading .zst files needs the package zstandard: pip install zstandard") from None
        self._raw = raw
        self._decompressor = zstandard.ZstdDecompressor()
        self._error = zstandard.ZstdError
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._raw.read(READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed file ends too early")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._ready = self._frame.decompress(data)
            except self._error as error:
                raise OSError(str(error)) from None
            if self._frame.eof:
                self._raw.seek(-len(self._frame.unused_data), io.SEEK_CUR)  # the next frame
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def open_stream(path: Path) -> tuple[Any, Callable[[], int]]:
    """Open a file for reading, decompressed, with a function that tells how far the file itself was read."""
    raw = path.open("rb")
    suffix = path.suffix.lower()
    if suffix == ".gz":
        stream: Any = gzip.GzipFile(fileobj=raw, mode="rb")
        stream.myfileobj = raw  # closed together
        return stream, raw.tell
    if suffix == ".zst":
        return io.BufferedReader(_ZstandardReader(raw), READ_BYTES), raw.tell
    return raw, raw.tell


_DAMAGED = (EOFError, OSError, zlib.error)


def _lines(path: Path) -> Iterator[Row]:
    """Yield the lines of a file with their ends; a damaged compressed file ends in a row with a problem."""
    stream, position = open_stream(path)
    number = 0
    with stream:
        try:
            for line in stream:
                number += 1
                value = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield Row(path, number, value, position=position())
        except _DAMAGED as error:
            yield Row(path, number + 1, problem=f"damaged file, the rest cannot be read ({error})", position=position())


# ------------------------------------------------------------------------------------------------------ formats


def _read_lines(path: Path) -> Iterator[Row]:
    for row in _lines(path):
        if row.problem:
            yield row
        elif row.value.strip():
            yield Row(path, row.line, row.value.rstrip(b"\r\n"), position=row.position)


def _read_blocks(path: Path, *, whole_file: bool) -> Iterator[Row]:
    """Yield paragraphs (separated by blank lines) or the whole file."""
    block: list[bytes] = []
    first, position = 1, 0
    for row in _lines(path):
        position = row.position
        if row.problem:
            yield row
            return
        if row.value.strip() or (whole_file and block):
            first = first if block else row.line
            block.append(row.value)
        elif block:
            yield Row(path, first, b"".join(block).rstrip(), position=position)
            block = []
    if block:
        yield Row(path, first, b"".join(block).rstrip(), position=position)


def _sniff_json(path: Path) -> str:
    """Tell how a .json file is laid out: JSON lines, a list, ``{"RECORDS": [...]}`` or one object."""
    stream, _ = open_stream(path)
    with stream:
        try:
            head = stream.read(SNIFFED_BYTES)
        except _DAMAGED:
            return "json lines"
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"[") or re.match(rb'\{\s*"RECORDS"\s*:\s*\[', head):
        return "records"
    first, newline, _ = head.partition(b"\n")
    if newline and not first.rstrip().endswith(b"}"):
        return "one object"
    return "json lines"


def _read_object(path: Path) -> Iterator[Row]:
    """Yield the one object of a file, or the elements of its ``RECORDS``."""
    stream, position = open_stream(path)
    with stream:
        try:
            value = parse_value(Row(path, 1, stream.read().removeprefix(codecs.BOM_UTF8)))
        except (ValueError, *_DAMAGED) as error:
            yield Row(path, 1, problem=str(error), position=position())
            return
        records = value.get("RECORDS") if isinstance(value, dict) else None
        for number, record in enumerate(records if isinstance(records, list) else [value], start=1):
            yield Row(path, number, record, position=position())


def _read_list(path: Path) -> Iterator[Row]:
    """Yield the elements of the first JSON list of a file without holding more than a part of it."""
    decode = json.JSONDecoder().raw_decode
    stream, position = open_stream(path)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    buffer, place, line, size, inside = "", 0, 1, READ_BYTES, False
    with text:
        while True:
            if not inside and "[" in buffer:
                place, inside = buffer.index("[") + 1, True
                line += buffer.count("\n", 0, place)
            problem = "the list does not end" if inside else "no list in the file"
            if inside:
                separators = _SEPARATORS.match(buffer, place)
                assert separators is not None, "it matches nothing, too"
                start = separators.end()
                line += buffer.count("\n", place, start)
                place = start
                if buffer[place : place + 1] == "]":
                    return
            if inside and place < len(buffer):
                try:
                    value, end = decode(buffer, place)
                except (json.JSONDecodeError, RecursionError) as error:
                    problem = f"not JSON ({getattr(error, 'msg', 'nested too deeply')}), the rest cannot be read"
                else:
                    if end < len(buffer):  # a number at the end may go on in the next part
                        yield Row(path, line, value, position=position())
                        line += buffer.count("\n", place, end)
                        place, size = end, READ_BYTES
                        continue
            try:
                more = text.read(size)
            except (UnicodeDecodeError, *_DAMAGED) as error:
                more, problem = "", f"damaged file, the rest cannot be read ({error})"
            if not more:
                yield Row(path, line, problem=problem, position=position())
                return
            buffer, place = buffer[place:] + more, 0
            size *= 2  # a long element is not decoded again and again


_SEPARATORS = re.compile(r"[\s,]*")


def _read_parquet(path: Path) -> Iterator[Row]:
    """Yield the records of a parquet file as dictionaries."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("reading .parquet files needs the package pyarrow: pip install pyarrow") from None
    if path.suffix.lower() in COMPRESSIONS:
        raise ValueError(f"{path}: decompress it first (parquet files are compressed inside)")
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        yield Row(path, 1, problem=f"not a parquet file ({error})")
        return
    size, number = path.stat().st_size, 0
    with file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield Row(path, number, record, position=size * number // file.metadata.num_rows)
