"""The order of the data: from which tokens of which documents every update of a run was made (``--record-order``).

Every data rank has a file of its own, ``rank-00000.bin``, of frames: a letter, the length of the content, its CRC-32
(little-endian, ``FRAME``), the content. Frame D describes the training documents (JSON); documents are counted in them
from 0 on. Frame U is an update, of whole numbers in 7 bits a byte (the last byte of a number is below 128): the number
of the update, the data ranks, the micro batches, then each of these as ``encode_origin`` writes it.

A frame is appended by one write when its update is made: what a kill leaves is whole. A run that goes on drops the
frames behind its checkpoint first, so that its record is that of a straight run, byte for byte.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from files.reading import parse_json

FRAME = struct.Struct("<cII")
DOCUMENTS, UPDATE = b"D", b"U"


Pieces = Sequence[tuple[int, int, int]]  # of a sample: document, first token of it, how many


@dataclass(frozen=True)
class Origin:
    """Where a micro batch comes from.

    Attributes:
        batch: its number among those of its loader.
        samples: the number of every sample and its pieces; a sample of a task has none.
    """

    batch: int
    samples: list[tuple[int, Pieces]]


def encode_origin(batch: int, samples: Sequence[tuple[int, Pieces]]) -> bytes:
    """Return the batch and its samples in whole numbers: the batch, how many samples, and of each of them the distance
    from the sample before (0 is the next one; even numbers forwards, odd ones backwards), how many pieces, and the
    document, start and length of each.
    """
    numbers, before = [batch, len(samples)], -1
    for number, pieces in samples:
        distance, before = number - before - 1, number
        numbers += [2 * distance if distance >= 0 else -2 * distance - 1, len(pieces)]
        for piece in pieces:
            numbers += piece
    return _encode(numbers)


def _encode(numbers: Sequence[int]) -> bytes:
    content = bytearray()
    for number in numbers:
        rest = number
        while rest > 127:
            content.append(rest & 127 | 128)
            rest >>= 7
        content.append(rest)
    return bytes(content)


def _numbers(content: bytes) -> Iterator[int]:
    """Yield the whole numbers of a frame."""
    number = shift = 0
    for byte in content:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield number
            number = shift = 0


def _origin(numbers: Iterator[int]) -> Origin:
    batch, count, before = next(numbers), next(numbers), -1
    samples: list[tuple[int, Pieces]] = []
    for _ in range(count):
        distance = next(numbers)
        before += 1 + (distance >> 1 if distance % 2 == 0 else -((distance + 1) >> 1))
        pieces = [(next(numbers), next(numbers), next(numbers)) for _ in range(next(numbers))]
        samples.append((before, pieces))
    return Origin(batch, samples)


def _frames(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield the kind, the content and the end of every whole frame; the first damaged one ends it."""
    end = 0
    while len(head := file.read(FRAME.size)) == FRAME.size:
        kind, length, checksum = FRAME.unpack(head)
        content = file.read(length)
        if kind not in (DOCUMENTS, UPDATE) or len(content) < length or zlib.crc32(content) != checksum:
            return
        end += FRAME.size + length
        yield kind, content, end


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05}.bin"


def _files(folder: Path) -> dict[int, Path]:
    """Return the files of a record by rank."""
    found = {path: re.fullmatch(r"rank-(\d{5,})\.bin", path.name) for path in sorted(folder.glob("rank-*.bin"))}
    return {int(match[1]): path for path, match in found.items() if match}


def _drop_behind(path: Path, update: int) -> bytes | None:
    """Cut a file behind update ``update``; return the description of documents that holds there, None without one."""
    described, latest, end = None, None, 0
    with path.open("r+b") as file:
        for kind, content, position in _frames(file):
            if kind == DOCUMENTS:
                latest = content
            elif next(_numbers(content)) > update:
                break
            else:
                described, end = latest, position
        file.truncate(end)
    return described


class OrderRecord:
    """The file of one data rank, to append to."""

    def __init__(
        self, folder: Path, *, documents: Mapping[str, Any], updates: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """Begin, or go on behind the first ``updates`` updates; rank 0 cuts the files of ranks that are no more.

        ``documents`` describes the training documents.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _file_of(folder, rank)
        self._num_ranks = num_ranks
        self._described = _drop_behind(self.path, updates) if self.path.exists() else None
        for other, path in _files(folder).items() if rank == 0 else ():
            if other >= num_ranks:
                _drop_behind(path, updates)
        self._documents = json.dumps(documents, sort_keys=True, ensure_ascii=False).encode("utf-8")
        self._file = self.path.open("ab", buffering=0)

    def add(self, update: int, origins: Sequence[bytes]) -> None:
        """Append update ``update`` of micro batches of these ``origins`` (``encode_origin``). Raise OSError."""
        frames = b""
        if self._described != self._documents:
            frames = self._frame(DOCUMENTS, self._documents)
        frames += self._frame(UPDATE, _encode([update, self._num_ranks, len(origins)]) + b"".join(origins))
        written = self._file.write(frames)
        if written != len(frames):  # no more room: what is there of it is cut by the next run, or left out by readers
            raise OSError(f"{self.path}: no room for the record of the order")
        self._described = self._documents

    def sync(self) -> None:
        """See to it that everything is on the disk."""
        os.fsync(self._file.fileno())

    @staticmethod
    def _frame(kind: bytes, content: bytes) -> bytes:
        return FRAME.pack(kind, len(content), zlib.crc32(content)) + content


@dataclass(frozen=True)
class RecordedUpdate:
    """An update in a record, by data rank: what describes the documents, and the micro batches."""

    documents: list[Mapping[str, Any]]
    ranks: list[list[Origin]]


def read_update(folder: str | Path, update: int) -> RecordedUpdate:
    """Return update ``update`` (from 1 on) of the record in ``folder``. Raise ValueError where it is not there."""
    folder = Path(folder)
    files = _files(folder)
    if not files:
        raise ValueError(
            f"{folder}: no record of the order (rank-00000.bin); give the folder order/ of a run with --record-order"
        )
    ranks: list[list[Origin]] = []
    documents: list[Mapping[str, Any]] = []
    for rank in itertools.count():
        if rank not in files:
            raise ValueError(f"{folder}: {_file_of(folder, rank).name} is missing; the files of all ranks are needed")
        latest, first, last, found = b"{}", None, 0, None
        with files[rank].open("rb") as file:
            for kind, content, _ in _frames(file):
                if kind == DOCUMENTS:
                    latest = content
                    continue
                numbers = _numbers(content)
                last = next(numbers)
                first = last if first is None else first
                if last == update:
                    found = next(numbers), [_origin(numbers) for _ in range(next(numbers))]
                    break
        if found is None:
            there = "no update" if first is None else f"updates {first} to {last}"
            raise ValueError(f"{files[rank]}: update {update} is not recorded; there are {there}")
        num_ranks, origins = found
        ranks.append(origins)
        documents.append(parse_json(latest, place=str(files[rank])))
        if len(ranks) == num_ranks:
            break
    return RecordedUpdate(documents, ranks)
