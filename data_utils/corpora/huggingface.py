"""Read data sets with the library ``datasets``: ``hf:NAME[,CONFIGURATION][:SPLIT]``.

NAME is what ``datasets.load_dataset`` takes (a name of the hub, a folder of data files) or a folder that
``save_to_disk`` wrote. A data set is streamed in parts, the files that it is made of, so that whoever goes on behind
some row reads one part again and no more.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_utils.corpora.files import Piece, Row, Shard, SourceLostError, column_values

logger = logging.getLogger("glm")

PREFIX = "hf:"
BATCH_ROWS = 256  # read at a time
PART_ROWS = 10_000  # of a data set that is on disk as one table
DEFAULT_SPLIT = "train"
SAVED = ("state.json", "dataset_dict.json")  # what ``save_to_disk`` writes


@dataclass(frozen=True)
class DataSet:
    """Which data set: its name or folder, its configuration, and its split (None: the only one, or ``train``)."""

    name: str
    configuration: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, location: str) -> DataSet:
        """Read ``NAME[,CONFIGURATION][:SPLIT]``."""
        name, separator, split = location.rpartition(":")
        if not separator or "/" in split:
            name, split = location, ""
        name, _, configuration = name.partition(",")
        if not name or "]" in split:
            raise ValueError(
                f"{PREFIX}{location}: give the name of a data set, and a whole split of it: "
                f"{PREFIX}NAME[,CONFIGURATION][:SPLIT]"
            )
        return cls(name, configuration or None, split or None)

    def __str__(self) -> str:
        configuration = f",{self.configuration}" if self.configuration else ""
        return f"{PREFIX}{self.name}{configuration}" + (f":{self.split}" if self.split else "")

    @property
    def is_local(self) -> bool:
        """Tell whether it lies in a folder here."""
        return Path(self.name).exists()

    def files(self) -> list[Path]:
        """List its files, sorted, where they lie in a folder here."""
        root = Path(self.name)
        if root.is_file():
            return [root]
        found = (path for path in root.rglob("*") if path.is_file())
        return sorted(path for path in found if not any(n.startswith(".") for n in path.relative_to(root).parts))

    def pieces(self, text_field: str, shard: Shard | None = None) -> list[Piece]:
        """List its parts, or those of a shard.

        Raises:
            ValueError: it cannot be loaded, or has no such split or field; one line, with those that there are.
        """
        split = _open_split(self)
        _check_field(self, split, text_field)
        count = _num_parts(split)
        start, end = (0, count) if shard is None else shard.range_of(count)
        if shard is not None and count < shard.count:
            logger.warning(f"{self}: {count} files can keep {count} shards busy; of {shard.count} the others are empty")
        return [Piece(Path(str(self)), part=part) for part in range(start, end)]

    def rows(self, piece: Piece, text_field: str) -> Iterator[Row]:
        """Yield the rows of one part, each an object with the text only."""
        split = _open_split(self)
        first, place = 0, Path(f"{self}, part {piece.part + 1}")
        if _is_table(split):
            first, place = piece.part * PART_ROWS, Path(str(self))
            part = split.select(range(first, min(first + PART_ROWS, len(split))))
        else:
            part = split.shard(num_shards=_num_parts(split), index=piece.part, contiguous=True)
        tables = part.select_columns([text_field]).with_format("arrow").iter(batch_size=BATCH_ROWS)
        number = first
        with _errors_of(self):
            for table in tables:
                for value in column_values(table[text_field]):
                    number += 1
                    yield Row(place, number, {text_field: value})


@contextlib.contextmanager
def _errors_of(source: DataSet) -> Iterator[None]:
    """Turn what the library raises into one line.

    Raises:
        SourceLostError: the hub cannot be reached, or a file ends too early.
        ValueError: anything else.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ValueError, RuntimeError, FileNotFoundError, DatasetsError) as error:
        raise ValueError(f"{source}: {_in_one_line(error)}") from None
    except (OSError, EOFError) as error:
        raise SourceLostError(f"{source}: {_in_one_line(error)}") from None


@lru_cache(maxsize=4)  # a data set is opened once by a process
def _open_split(source: DataSet) -> Any:
    """Return a split: a ``Dataset`` that is on disk, or an ``IterableDataset`` that is streamed."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{source}: data sets need the package datasets: pip install datasets") from None
    with _errors_of(source):
        if any((Path(source.name) / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(source.name)
        else:
            found = datasets.load_dataset(source.name, source.configuration, streaming=True)
    if not isinstance(found, dict):  # one split, saved by itself
        found = {str(found.split or DEFAULT_SPLIT): found}
    name = source.split or (next(iter(found)) if len(found) == 1 else DEFAULT_SPLIT)
    if name not in found:
        raise ValueError(f"{source}: no split {name!r}; its splits are {', '.join(map(str, found))}")
    return found[name]


def _is_table(split: Any) -> bool:
    return hasattr(split, "__len__")


def _num_parts(split: Any) -> int:
    return -(-len(split) // PART_ROWS) if _is_table(split) else split.num_shards


def _check_field(source: DataSet, split: Any, text_field: str) -> None:
    names = split.column_names
    if names is None:  # a streamed data set that does not declare them
        with _errors_of(source):
            names = list(next(iter(split), {}))
    if text_field not in names:
        raise ValueError(
            f"{source}: no field {text_field!r}; its fields are {', '.join(names) or 'none'}: name the one that holds "
            "the text with --text-field"
        )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
