"""Read rows from raw corpus files: .jsonl, .json, .txt and .parquet, also compressed as .gz or .zst.

A row is what one document rule sees: a JSON object, a line of text, a parquet record. Files are read as a stream, in a
fixed order; lines are handed on as bytes, so that another process can decode and parse them. A row knows its file and
line; what cannot be read becomes a row with a ``problem``, and the caller decides whether that stops the run.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from files.reading import described, end_of_json, not_utf8, parse_json

logger = logging.getLogger("glm")

COMPRESSIONS = (".gz", ".zst")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
KNOWN_SUFFIXES = (*JSON_LINES_SUFFIXES, ".json", *TEXT_SUFFIXES, ".parquet")
ROW_FORMATS = ("by name", "json lines", "text lines", "text paragraphs", "records")
TEXT_UNITS = ("line", "paragraph", "file")
NOT_CORPORA = (".lazy", ".scatter")  # folders of the original's token cache
SNIFFED_BYTES = 1 << 16
READ_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 14  # read at a time: a few of them may stand for a hundred thousand
LONGEST_WINDOW = 1 << 31  # bytes that a .zst file may refer back, as of ``zstd --ultra --long=31``
PARQUET_ROWS = 256  # read at a time
LISTED = 5  # files in a message


@dataclass(frozen=True)
class Piece:
    """What is read from its beginning to its end: a file, some lines of one, or a part of a data set.

    Attributes:
        path: the file, or the name of the data set.
        size: bytes, for progress reports.
        start, end: a line is read when its first byte is one of these of the file; None: all lines.
        part: number of the part of a data set.
    """

    path: Path
    size: int = 0
    start: int = 0
    end: int | None = None
    part: int = 0


class SourceLostError(OSError):
    """Text broke off for a reason that may pass: a connection, a killed process."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a corpus, by ``number`` from 1 on; in a text ``3/16``."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``NUMBER/COUNT``. Raises ValueError for anything else."""
        match = re.fullmatch(r"0*([1-9]\d{0,5})/0*([1-9]\d{0,5})", text)
        if match is None or int(match[1]) > int(match[2]):
            raise ValueError(f"--shard {text}: give the number of a shard and how many there are: 1/16 ... 16/16")
        return cls(int(match[1]), int(match[2]))

    def range_of(self, total: int) -> tuple[int, int]:
        """Return which of ``total`` things in a row are this shard's: from, and up to but without."""
        return total * (self.number - 1) // self.count, total * self.number // self.count

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(slots=True)
class Row:
    """One row of a corpus file.

    Attributes:
        file: the file.
        line: line number from 1 on; number of the record in parquet files.
        value: bytes of a line or JSON value that is still to be parsed (see ``parse_value``), or what the row holds.
        problem: why it could not be read.
        position: bytes of the file that were read so far, for progress reports.
        is_text: the bytes are text, not JSON.
        rest_lost: no row, but the place from which on the file cannot be read: it ends early, or is damaged.
    """

    file: Path
    line: int
    value: Any = None
    problem: str | None = None
    position: int = 0
    is_text: bool = False
    rest_lost: bool = False

    @property
    def place(self) -> str:
        """Return ``file:line``."""
        return f"{self.file}:{self.line}"


def inner_suffix(path: Path) -> str:
    """Return the suffix that tells the format, below a compression suffix: ``a.JSONL.gz`` -> ``.jsonl``."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


# ------------------------------------------------------------------------------------------------------ finding


def find_files(location: str | Path, *, any_suffix: bool = False) -> list[Path]:
    """List the files that a path means, sorted: itself, every file below a folder, or the matches of a glob.

    Linked folders are followed, and every folder is read once. What is left out is said.

    Args:
        location: file, folder or glob (``**`` included).
        any_suffix: take every file of a folder; otherwise only those whose suffix tells a format. Hidden files and
            folders, and token caches of the original, are left out.

    Raises:
        ValueError: nothing there, or a file of a suffix that tells no format.
    """
    path = Path(location)
    if path.is_file():
        return [path if any_suffix else known_file(path)]
    if path.is_dir():
        files, others = _files_below(path, any_suffix)
        if others:
            _say_left_out(f"{location}: left out for their suffix:", others, logger.info)
        if not files:
            raise ValueError(
                f"folder {location} holds no corpus file ({', '.join(KNOWN_SUFFIXES)}, also with .gz or .zst)"
            )
        return files
    if path.is_symlink():
        raise ValueError(f"{location} is a link to {os.readlink(path)}, which does not exist")
    pattern = str(location)
    if not has_magic(pattern):
        raise ValueError(f"no such file or folder: {location}")
    parts = path.parts
    if "**" in parts:  # glob itself goes round in circles of links
        before = Path(*parts[: parts.index("**")])
        roots = [Path(root) for root in sorted(glob(str(before)))]
        below = [file for root in roots if root.is_dir() for file in _files_below(root, any_suffix=True)[0]]
        matches = [file for file in below if _fits(file.parts, parts)]
    else:
        matches = [Path(match) for match in sorted(glob(pattern))]
        _name_dangling([match for match in matches if not match.exists()])
    files = [match for match in matches if match.is_file()]
    if not files:
        raise ValueError(f"no file matches {location}")
    return files if any_suffix else list(map(known_file, files))


def known_file(path: Path) -> Path:
    """Return a file whose suffix tells its format; ValueError for another one."""
    if inner_suffix(path) not in KNOWN_SUFFIXES:
        known = ", ".join(KNOWN_SUFFIXES)
        raise ValueError(f"{path}: unknown suffix {inner_suffix(path)!r}; known are {known}, also with .gz or .zst")
    return path


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Tell whether the parts of a path fit those of a glob; ``**`` stands for any number of folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _files_below(root: Path, any_suffix: bool) -> tuple[list[Path], list[Path]]:
    """Return the corpus files below a folder, sorted, and the files whose suffix is none of a corpus.

    Links to folders are followed after all others, unless they lead to a folder that is read already or holds ``root``.
    """
    files: list[Path] = []
    others: list[Path] = []
    dangling: list[Path] = []
    links = [root]
    read: set[str] = set()
    while links:
        link, *links = links
        target = link.resolve()
        if str(target) in read or (link != root and root.resolve().is_relative_to(target)):
            logger.warning(f"{link} leads to {target}, which is read already or holds {root}: not followed")
            continue
        for place, folders, names in os.walk(link, onerror=_refuse):
            folder = Path(place)
            read.add(os.path.realpath(place))
            inside = [folder / name for name in sorted(folders) if not _is_hidden(name)]
            links += [path for path in inside if path.is_symlink()]
            folders[:] = [p.name for p in inside if not p.is_symlink() and os.path.realpath(p) not in read]
            for path in (folder / name for name in names if not _is_hidden(name)):
                if path.is_file():
                    known = any_suffix or inner_suffix(path) in KNOWN_SUFFIXES
                    (files if known else others).append(path)
                elif path.is_symlink():
                    dangling.append(path)
    _name_dangling(sorted(dangling))
    return sorted(files), sorted(others)


def _refuse(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(NOT_CORPORA)


def _name_dangling(links: list[Path]) -> None:
    if links:
        _say_left_out("left out, they are links to what does not exist:", links, logger.warning)


def _say_left_out(what: str, paths: list[Path], say: Callable[[str], None]) -> None:
    names = ", ".join(map(str, paths[:LISTED]))
    say(f"{what} {names}" + (f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""))


# ------------------------------------------------------------------------------------------------------ rows


def read_rows(
    path: Path, *, row_format: str = "by name", text_unit: str = "line", start: int = 0, end: int | None = None
) -> Iterator[Row]:
    """Yield the rows of one file in order; blank lines are no rows.

    Args:
        path: the file.
        row_format: one of ``ROW_FORMATS``; parquet files are always read as such.
        text_unit: what of a text file is one row: a line, a paragraph (up to a blank line) or the whole file.
        start, end: only lines whose first byte is one of these, of a file that ``has_lines``; None: up to the end.

    Raises:
        ValueError: an unknown suffix, a missing optional package.
        OSError: a file that cannot be opened.
    """
    layout = _layout(path, row_format, text_unit)
    assert layout in LINE_LAYOUTS or (not start and end is None), (layout, start, end)
    if layout in LINE_LAYOUTS:
        return _read_lines(path, is_text=layout == "text lines", start=start, end=end)
    if layout in ("paragraphs", "file"):
        return _read_blocks(path, whole_file=layout == "file")
    return {"parquet": _read_parquet, "one object": _read_object, "records": _read_list}[layout](path)


LINE_LAYOUTS = ("json lines", "text lines")


def _layout(path: Path, row_format: str, text_unit: str) -> str:
    """Return how a file is read; a .json file is looked into."""
    assert row_format in ROW_FORMATS and text_unit in TEXT_UNITS, (row_format, text_unit)
    suffix = inner_suffix(path)
    if suffix == ".parquet":
        return "parquet"
    if row_format == "by name":
        row_format = "text lines" if inner_suffix(known_file(path)) in TEXT_SUFFIXES else "json lines"
    if row_format == "text paragraphs":  # whatever the suffix says
        return "paragraphs"
    if row_format == "records" or (row_format == "json lines" and suffix == ".json"):
        row_format = _sniff_json(path, row_format)
    if row_format == "text lines" and text_unit != "line":
        return "file" if text_unit == "file" else "paragraphs"
    return row_format


def has_lines(path: Path, row_format: str, text_unit: str) -> bool:
    """Tell whether some lines of a file can be read without what is before them."""
    return path.suffix.lower() not in COMPRESSIONS and _layout(path, row_format, text_unit) in LINE_LAYOUTS


def pieces_of(files: Sequence[Path], *, row_format: str, text_unit: str, start: int, end: int) -> list[Piece]:
    """List what of some files is to be read for a range of bytes of all of them, one behind the other.

    The range has the lines, or else the files, whose first byte lies in it. So ranges that divide all bytes divide all
    rows, in their order.
    """
    pieces = []
    before = 0
    for path in files:
        size = path.stat().st_size
        low, high = max(0, start - before), min(size, end - before)
        if not size and not start:  # the first shard says what is wrong with it
            pieces.append(Piece(path, size))
        elif low < high:
            if high - low == size:
                pieces.append(Piece(path, size))
            elif has_lines(path, row_format, text_unit):
                pieces.append(Piece(path, high - low, low, high))
            elif low == 0:
                pieces.append(Piece(path, size))
        before += size
    return pieces


def parse_value(row: Row) -> Any:
    """Return what a row holds: JSON, or text.

    Raises:
        ValueError: not UTF-8, not JSON, or the row's ``problem``; with file and line.
    """
    if row.problem is not None:
        raise ValueError(f"{row.place}: {row.problem}")
    if not isinstance(row.value, bytes):
        return row.value
    if not row.is_text:
        return parse_json(row.value, place=row.place)
    try:
        return row.value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{row.place}: {not_utf8(error)}") from None


# ------------------------------------------------------------------------------------------------------ streams


class _Decompressing(io.RawIOBase):
    """Decompress a file of one or more frames, and notice when it ends too early."""

    def __init__(self, raw: io.BufferedReader, start_frame: Callable[[], Any], error: type[Exception]) -> None:
        """``start_frame`` makes what has ``decompress``, which raises ``error``, ``eof`` and ``unused_data``."""
        self._raw = raw
        self._start_frame = start_frame
        self._error = error
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._raw.read(COMPRESSED_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed file ends too early")
                return 0
            if self._frame is None:
                data = data.lstrip(b"\0")  # padding between frames
                if not data:
                    continue
                self._frame = self._start_frame()
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
    suffix = path.suffix.lower()
    start_frame: Callable[[], Any] | None = None
    error: type[Exception] = zlib.error
    if suffix == ".gz":
        start_frame = partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)
    elif suffix == ".zst":
        try:
            import zstandard
        except ImportError:
            raise ValueError("reading .zst files needs the package zstandard: pip install zstandard") from None
        start_frame = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW).decompressobj
        error = zstandard.ZstdError
    raw = path.open("rb")
    if start_frame is None:
        return raw, raw.tell
    return io.BufferedReader(_Decompressing(raw, start_frame, error), READ_BYTES), raw.tell


_DAMAGED = (EOFError, OSError)


def _rest_lost(path: Path, line: int, reason: object, *, what: str = "lines", position: int = 0) -> Row:
    """Return the row that says that a file cannot be read from ``line`` on."""
    size = path.stat().st_size
    problem = f"{reason}; {line - 1} {what} before it were read ({position} of {size} bytes), the rest is lost"
    return Row(path, line, problem=problem, position=position, rest_lost=True)


# ------------------------------------------------------------------------------------------------------ formats


def _lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the lines of a file with their ends, blank ones too; a damaged compressed file ends in a lost rest."""
    stream, position = open_stream(path)
    number = 0
    with stream:
        if start:
            number = _pass_over(stream, start)
        place = stream.tell() if end is not None else 0
        try:
            for line in stream:
                if end is not None and place >= end:
                    return
                place += len(line)
                number += 1
                yield Row(path, number, line, None, position() if end is None else place - start)
        except _DAMAGED as error:
            yield _rest_lost(path, number + 1, error, position=position())


def _pass_over(stream: Any, start: int) -> int:
    """Go on to the first line that begins at byte ``start`` or behind it; return how many lines are before it."""
    count, left = 0, start - 1
    while left:
        data = stream.read(min(READ_BYTES, left))
        if not data:
            break
        count += data.count(b"\n")
        left -= len(data)
    stream.readline()
    return count + 1


def _read_lines(path: Path, *, is_text: bool, start: int = 0, end: int | None = None) -> Iterator[Row]:
    for row in _lines(path, start, end):
        if row.rest_lost:
            yield row
        elif row.value.strip():
            value = row.value.rstrip(b"\r\n")
            if value.startswith(codecs.BOM_UTF8) and (row.line == 1 or not is_text):  # JSON files that were joined
                value = value.removeprefix(codecs.BOM_UTF8)
            row.value, row.is_text = value, is_text
            yield row


def _read_blocks(path: Path, *, whole_file: bool) -> Iterator[Row]:
    """Yield paragraphs (separated by blank lines) or the whole file."""
    block: list[bytes] = []
    first, position = 1, 0
    for row in _lines(path):
        position = row.position
        if row.rest_lost:
            yield row
            return
        line = row.value.removeprefix(codecs.BOM_UTF8) if row.line == 1 else row.value
        if line.strip() or (whole_file and block):
            first = first if block else row.line
            block.append(line)
        elif block:
            yield Row(path, first, b"".join(block).rstrip(), None, position, is_text=True)
            block = []
    if block:
        yield Row(path, first, b"".join(block).rstrip(), None, position, is_text=True)


_LIST = re.compile(r'\s*(\{\s*"RECORDS"\s*:\s*)?\[')


def _sniff_json(path: Path, row_format: str) -> str:
    """Tell how a file is laid out: JSON lines, a list, ``{"RECORDS": [...]}`` or one object."""
    stream, _ = open_stream(path)
    with stream:
        try:
            head = stream.read(SNIFFED_BYTES)
        except _DAMAGED:
            return "json lines"
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if _LIST.match(head.decode("utf-8", "replace")):
        return "records"
    first, newline, _ = head.partition(b"\n")
    if row_format == "records" or (newline and not first.rstrip().endswith(b"}")):
        return "one object"
    return "json lines"


def _read_object(path: Path) -> Iterator[Row]:
    """Yield the one object of a file, or the elements of its ``RECORDS``."""
    stream, position = open_stream(path)
    with stream:
        try:
            data = stream.read().removeprefix(codecs.BOM_UTF8)
        except _DAMAGED as error:
            yield _rest_lost(path, 1, error, position=position())
            return
        try:
            value = parse_value(Row(path, 1, data))
        except ValueError:
            yield Row(path, 1, data, None, position())  # what is wrong is said where it is parsed
            return
        records = value.get("RECORDS") if isinstance(value, dict) else None
        if not isinstance(records, list):
            yield Row(path, 1, data, None, position())
            return
        for number, record in enumerate(records, start=1):
            yield Row(path, number, json.dumps(record, ensure_ascii=False).encode("utf-8"), None, position())


class _ListText:
    """The text of a file that holds a JSON list, of which no more than a part is in memory.

    ``buffer[place:]`` is what comes next, ``line`` the line it is in.
    """

    def __init__(self, stream: Any) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self.buffer, self.place, self.line = "", 0, 1

    def more(self, size: int) -> bool:
        """Read on. Raises UnicodeDecodeError, EOFError and OSError for what cannot be read."""
        data = self._text.read(size)
        self.buffer, self.place = self.buffer[self.place :] + data, 0
        return bool(data)

    def move(self, place: int) -> str:
        """Go on to a place of the buffer; return what was passed over."""
        passed = self.buffer[self.place : place]
        self.line += passed.count("\n")
        self.place = place
        return passed

    def next_mark(self) -> str:
        """Pass over blanks and return the character behind them, "" at the end."""
        while True:
            blanks = _BLANKS.match(self.buffer, self.place)
            assert blanks is not None, "it matches nothing, too"
            self.move(blanks.end())
            if self.place < len(self.buffer) or not self.more(READ_BYTES):
                return self.buffer[self.place : self.place + 1]

    def value(self) -> str:
        """Pass over one JSON value and return its text. Raises ValueError."""
        size = READ_BYTES
        end = end_of_json(self.buffer, self.place)
        while (end is None or end == len(self.buffer)) and self.more(size):  # a number may go on
            size *= 2  # a long value is not gone through again and again
            end = end_of_json(self.buffer, self.place)
        if end is None:
            end = end_of_json(self.buffer, self.place, is_whole=True)
        assert end is not None
        return self.move(end)


_BLANKS = re.compile(r"[ \t\r\n]*")


def _read_list(path: Path) -> Iterator[Row]:
    """Yield the elements of the JSON list that a file is, or of its ``RECORDS``, in parts."""
    stream, position = open_stream(path)
    with stream:
        text = _ListText(stream)
        count = 0
        try:
            start = None
            while start is None:  # it was seen before
                text.more(READ_BYTES)
                start = _LIST.match(text.buffer)
            text.move(start.end())
            mark = text.next_mark()
            while mark != "]":
                if count and mark != ",":
                    raise ValueError(f"the list does not end, {mark!r} follows" if mark else "the list does not end")
                if count:
                    text.move(text.place + 1)
                    text.next_mark()
                line, value = text.line, text.value()
                count += 1
                yield Row(path, line, value.encode("utf-8"), None, position())
                mark = text.next_mark()
            _check_end(text, f"{start[0]}]")
        except (ValueError, *_DAMAGED) as error:
            reason = not_utf8(error) if isinstance(error, UnicodeDecodeError) else error
            lost = _rest_lost(path, count + 1, reason, what="elements", position=position())
            lost.line = text.line
            yield lost


def _check_end(text: _ListText, list_text: str) -> None:
    """Refuse what does not belong behind a list; ``list_text`` is how it begins, and its end."""
    text.move(text.place + 1)
    if "{" not in list_text:
        rest = text.next_mark()
        if rest:
            raise ValueError(f"the list ends, but more text follows it: {described(text.buffer[text.place :][:20])}")
        return
    while text.more(READ_BYTES):
        pass
    parse_json(list_text + text.buffer[text.place :], place="behind the list")


def _read_parquet(path: Path) -> Iterator[Row]:
    """Yield the records of a parquet file as dictionaries."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("reading .parquet files needs the package pyarrow: pip install pyarrow") from None
    if path.suffix.lower() in COMPRESSIONS:
        raise ValueError(f"{path}: decompress it first (parquet files are compressed inside)")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names, size = file.schema_arrow.names, path.stat().st_size
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{len(twice)} column names stand twice: {', '.join(sorted(twice))}")
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                columns = [column_values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    position = size * number // file.metadata.num_rows
                    yield Row(path, number, dict(zip(names, values, strict=True)), None, position)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        reason = str(error) if number else f"not a parquet file that can be read ({error})"
        yield _rest_lost(path, number + 1, reason, what="records")


class NoText:
    """Stands for a value of a parquet file that Python has no equal for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return self.kind


_NO_VALUE = (ValueError, ArithmeticError, LookupError)


def column_values(column: Any) -> list[Any]:
    """Return the values of a column, as ``NoText`` where Python cannot hold them: dates after the year 9999."""
    try:
        return column.to_pylist()
    except _NO_VALUE:
        return [_value(item) for item in column]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except _NO_VALUE:
        return NoText(f"a {item.type} that cannot be read")
