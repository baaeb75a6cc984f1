"""Exact duplicates: documents whose texts have the same hash of 8 bytes, of which the first one stays.

Among a billion documents a text is taken for another one by mistake with a probability of 3 % (n^2 / 2^65).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

IN_MEMORY = 1 << 20  # hashes of a list that is kept in memory; a longer one lies in a file


def hash_of(pieces: Sequence[str]) -> int:
    """Return the hash of a document: of its prompts and texts, below 2^64."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        data = piece.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


class SeenHashes:
    """The hashes that came before, in sorted lists of about doubling lengths, the long ones in files.

    However many there are, memory stays below some 50 MB; a hash is moved about log2 n times.
    """

    def __init__(self, folder: str | Path) -> None:
        """``folder`` has room for files without a name, up to 16 bytes for each hash."""
        self._folder = folder
        self._lists: list[np.ndarray] = []  # uint64, sorted, the longest first

    def first(self, hashes: np.ndarray) -> np.ndarray:
        """Tell which of ``hashes`` [n] occur for the first time, bool [n], and remember them."""
        values, places = np.unique(hashes, return_index=True)
        is_new = np.ones(len(values), dtype=bool)
        for known in self._lists:
            found = known.searchsorted(values)
            inside = found < len(known)
            is_new[inside] &= known[found[inside]] != values[inside]
        first = np.zeros(len(hashes), dtype=bool)
        first[places[is_new]] = True
        if is_new.any():
            self._remember(values[is_new])
        return first

    def _remember(self, values: np.ndarray) -> None:
        while self._lists and len(self._lists[-1]) <= 2 * len(values):
            values = self._merged(self._lists.pop(), values)
        self._lists.append(values)

    def _merged(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return two sorted lists as one."""
        count = len(first) + len(second)
        if count <= IN_MEMORY:
            return np.sort(np.concatenate([first, second]), kind="stable")
        with tempfile.TemporaryFile(dir=self._folder) as file:
            for part in _merge_parts(first, second):
                file.write(part.tobytes())
            file.flush()
            return np.memmap(file, mode="r", dtype=np.uint64, shape=(count,)).view(np.ndarray)


def first_of(hashes: np.ndarray, seen: SeenHashes) -> np.ndarray:
    """Tell which of many hashes [n] were not seen before, bool [n]; see ``SeenHashes.first``."""
    parts = [seen.first(hashes[start : start + IN_MEMORY]) for start in range(0, len(hashes), IN_MEMORY)]
    return np.concatenate([np.zeros(0, bool), *parts])


def _merge_parts(first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """Yield two sorted lists as one, in parts; equal hashes of both come together."""
    start, other = 0, 0
    while start < len(first) or other < len(second):
        end, other_end = (min(at + IN_MEMORY, len(part)) for at, part in ((start, first), (other, second)))
        bound = min(part[stop - 1] for part, at, stop in ((first, start, end), (second, other, other_end)) if at < stop)
        end = start + int(first[start:end].searchsorted(bound, side="right"))
        other_end = other + int(second[other:other_end].searchsorted(bound, side="right"))
        yield np.sort(np.concatenate([first[start:end], second[other:other_end]]), kind="stable")
        start, other = end, other_end
