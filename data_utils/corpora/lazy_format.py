"""Read the token cache of the original: ``.lazy`` folders.

For a source file P the folder is P without its last suffix, plus ``.lazy``. Its fields are ``prompt`` and ``text``: the
file ``<field>`` holds all documents back to back, as little-endian int32 ids or as UTF-8 text, and
``<field>.len.pkl`` a pickled list of their lengths in ids or bytes. Which of the two it is follows from the size of the
file.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.corpora.store import Document, checked_index, map_array

FIELDS = ("prompt", "text")
LENGTHS_SUFFIX = ".len.pkl"


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


class _NoClasses(pickle.Unpickler):
    """Unpickle numbers and lists only."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_lengths(path: Path) -> np.ndarray:
    """Return the pickled list of lengths, int64 [n]; no code of the pickle runs.

    Raises:
        ValueError: anything else than a list of lengths.
    """
    try:
        with path.open("rb") as file:
            lengths = _NoClasses(file).load()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not a list of lengths ({error})") from None
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths):
        raise ValueError(f"{path} is not a list of lengths")
    return np.array(lengths, dtype=np.int64)


class LazyDocuments:
    """The documents of a ``.lazy`` folder as they are stored: ids, or where ``is_text`` UTF-8 bytes."""

    def __init__(self, folder: str | Path, *, in_memory: bool = False) -> None:
        """Map the files into memory, or read them. Raise ValueError for files that are missing or damaged."""
        self.folder = Path(folder)
        fields = [field for field in FIELDS if (self.folder / field).is_file()]
        if "text" not in fields:
            raise ValueError(f"no token cache at {folder}: the files text and text{LENGTHS_SUFFIX} are needed")
        lengths = {field: read_lengths(self.folder / (field + LENGTHS_SUFFIX)) for field in fields}
        count = len(lengths["text"])
        if any(len(numbers) != count for numbers in lengths.values()):
            raise ValueError(f"{folder} is damaged: prompt and text differ in their number of documents")
        sizes = {field: (self.folder / field).stat().st_size for field in fields}
        totals = {field: int(lengths[field].sum()) for field in fields}
        self.is_text = any(sizes.values()) and sizes == totals
        if not self.is_text and any(sizes[field] != 4 * totals[field] for field in fields):
            raise ValueError(f"{folder} is damaged: the sizes of its files are not those of the lists of lengths")
        dtype = np.dtype(np.uint8 if self.is_text else "<i4")
        self._arrays = {field: map_array(self.folder / field, dtype, in_memory=in_memory) for field in fields}
        self._ends = {field: np.cumsum(lengths[field]) for field in fields}
        self.field_lengths = lengths
        #: tokens (or bytes) of each document, prompt and text, int64 [n]
        self.lengths = np.sum([lengths[field] for field in fields], axis=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        index = checked_index(index, len(self))
        parts = []
        for field, array in self._arrays.items():
            end = int(self._ends[field][index])
            parts.append(array[end - int(self.field_lengths[field][index]) : end])
        return Document(np.concatenate(parts), len(parts[0]) if len(parts) > 1 else 0)
