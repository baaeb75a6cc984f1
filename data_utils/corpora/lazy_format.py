"""Read the token cache of the original: ``.lazy`` folders.

For a source file P the folder is P without its last suffix, plus ``.lazy``. Its fields are ``prompt`` and ``text``: the
file ``<field>`` holds all documents back to back, as little-endian int32 ids or as UTF-8 text, and
``<field>.len.pkl`` a pickled list of their lengths in ids or bytes. Which of the two it is follows from the size of the
file.

The original wrote no checksums. When a small cache is opened for the first time, ``SHA256SUMS`` is put beside its
files; from then on a damaged byte is noticed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_utils.corpora.store import HASHED_BYTES, SCANNED_IDS, Document, checked_index, map_array
from files.checksums import CHECKSUMS_FILE, read_checksums, sha256_of, write_checksums

logger = logging.getLogger("glm")

FIELDS = ("prompt", "text")
LENGTHS_SUFFIX = ".len.pkl"
# What Python writes for a list of numbers below 2 ** 63, opcode by opcode: nothing else reaches the unpickler, so that
# no code runs and nothing is allocated that the file does not hold.
_NUMBERS = re.compile(
    rb"(?s:\x80[\x02-\x05]|\x95.{8}|[\x94\]l(ea.]|q\x00|p0\n|K.|M..|J.{4}|\x8a\x05.{5}|\x8a\x06.{6}|\x8a\x07.{7}"
    rb"|\x8a\x08.{8}|[IL]\d{1,19}L?\n){1,4096}"
)


def lazy_path(source: str) -> str:
    """Return the folder of the token cache of a source."""
    return os.path.splitext(source)[0] + ".lazy"


def scatter_path(source: str, shard: int) -> str:
    """Return the source path of one shard; its cache is at ``lazy_path`` of that."""
    return os.path.join(os.path.splitext(source)[0] + ".scatter", str(shard))


def is_lazy_folder(path: str | Path) -> bool:
    """Tell whether a folder holds a token cache: a text with its lengths."""
    path = Path(path)
    return path.is_dir() and all((path / name).is_file() for name in ("text", "text" + LENGTHS_SUFFIX))


def read_lengths(path: Path) -> np.ndarray:
    """Return the pickled list of lengths, int64 [n]; no code of the pickle runs.

    Raises:
        ValueError: anything else than a list of lengths.
    """
    data = path.read_bytes()
    place = 0
    while match := _NUMBERS.match(data, place):
        place = match.end()
    if data and place == len(data):
        with contextlib.suppress(*_MALFORMED):
            lengths = pickle.loads(data)
            if isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths):
                return np.array(lengths, dtype=np.int64)
    raise ValueError(f"{path} is not a list of lengths, as Python pickles it")


_MALFORMED = (pickle.UnpicklingError, EOFError, LookupError, ValueError, ArithmeticError, TypeError, AttributeError)


class LazyDocuments:
    """The documents of a ``.lazy`` folder as they are stored: ids, or where ``is_text`` UTF-8 bytes."""

    def __init__(self, folder: str | Path, *, in_memory: bool = False, full: bool = False) -> None:
        """Map the files into memory, or read them; ``full``: compare the checksums of a large cache, too.

        Raises ValueError for files that are missing or damaged.
        """
        self.folder = Path(folder)
        fields = [
            field for field in FIELDS if any((self.folder / name).is_file() for name in (field, field + LENGTHS_SUFFIX))
        ]
        if "text" not in fields:
            raise ValueError(f"no token cache at {folder}: the files text and text{LENGTHS_SUFFIX} are needed")
        names = [name for field in fields for name in (field, field + LENGTHS_SUFFIX)]
        for name in names:
            if not (self.folder / name).is_file():
                raise ValueError(f"{self.folder / name} is missing")
        lengths = {field: read_lengths(self.folder / (field + LENGTHS_SUFFIX)) for field in fields}
        count = len(lengths["text"])
        if any(len(numbers) != count for numbers in lengths.values()):
            raise ValueError(f"{folder} is damaged: prompt and text differ in their number of documents")
        sizes = {field: (self.folder / field).stat().st_size for field in fields}
        if any(lengths[field].max(initial=0) > sizes[field] for field in fields):  # their sum may be no int64
            raise ValueError(f"{folder} is damaged: a document is longer than its file")
        totals = {field: int(lengths[field].sum()) for field in fields}
        self.is_text = any(sizes.values()) and sizes == totals
        if not self.is_text and any(sizes[field] != 4 * totals[field] for field in fields):
            raise ValueError(f"{folder} is damaged: the sizes of its files are not those of the lists of lengths")
        check_folder(self.folder, names, full=full)
        dtype = np.dtype(np.uint8 if self.is_text else "<i4")
        self._arrays = {field: map_array(self.folder / field, dtype, in_memory=in_memory) for field in fields}
        self._ends = {field: np.cumsum(lengths[field]) for field in fields}
        self.field_lengths = lengths
        #: tokens (or bytes) of each document, prompt and text, int64 [n]
        self.lengths = np.sum([lengths[field] for field in fields], axis=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the stored values of all fields, in parts."""
        for array in self._arrays.values():
            yield from np.split(array, range(SCANNED_IDS, len(array), SCANNED_IDS))

    def __getitem__(self, index: int) -> Document:
        index = checked_index(index, len(self))
        parts = []
        for field, array in self._arrays.items():
            end = int(self._ends[field][index])
            parts.append(array[end - int(self.field_lengths[field][index]) : end])
        return Document(np.concatenate(parts), len(parts[0]) if len(parts) > 1 else 0)


def check_folder(folder: Path, names: Sequence[str], *, full: bool) -> None:
    """Compare the files of a folder with its ``SHA256SUMS``; make that of a small folder that has none.

    A large folder is compared with ``full`` only.

    Raises:
        ValueError: a file has another checksum, or none.
    """
    sums = folder / CHECKSUMS_FILE
    is_small = sum((folder / name).stat().st_size for name in names) <= HASHED_BYTES
    if not is_small and not full:
        return
    found = {name: sha256_of(folder / name) for name in names}
    if not sums.is_file():
        with contextlib.suppress(OSError):  # a folder that cannot be written goes without
            write_checksums(sums, found)
            logger.info(f"{folder}: its checksums as they are now are kept in {sums}")
        return
    known = read_checksums(sums)
    for name in known.keys() & {name for field in FIELDS for name in (field, field + LENGTHS_SUFFIX)} - found.keys():
        raise ValueError(f"{folder / name} is missing, of which {sums} has the checksum")
    for name, checksum in found.items():
        if known.get(name) != checksum:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 is not the one in {sums}; get the cache again, or delete "
                f"{CHECKSUMS_FILE} where it was made again"
            )
