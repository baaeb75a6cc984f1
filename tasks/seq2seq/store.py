"""Examples on disk (``--lazy-seq2seq-loader``): read once, then mapped into memory by every process of every run.

A split is a text store (``data_utils/corpora/store.py``) with one JSON object per example.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from data_utils.corpora.store import FORMAT_VERSION, IndexedDataset, StoreWriter, read_details
from data_utils.corpora.tokenization import CACHE_FOLDER, cache_folders, first_writable
from files.locks import locked
from files.reading import parse_json
from tasks.seq2seq.readers import Seq2SeqExample

logger = logging.getLogger("glm")

NOT_DATA = (CACHE_FOLDER, "runs")  # folders in those of a task's files that runs write into


class StoredExamples(Sequence[Seq2SeqExample]):
    """The examples of a store; each is made when it is asked for."""

    def __init__(self, prefix: Path) -> None:
        self.store = IndexedDataset(prefix)

    def __len__(self) -> int:
        return len(self.store)

    @overload
    def __getitem__(self, index: int) -> Seq2SeqExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Seq2SeqExample]: ...

    def __getitem__(self, index: int | slice) -> Seq2SeqExample | list[Seq2SeqExample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        place = f"{self.store.prefix}, example {index}"
        example = Seq2SeqExample(**parse_json(self.store[index].tokens.tobytes(), place=place))
        return replace(example, meta={name: _as_read(value) for name, value in example.meta.items()})


def _as_read(value: Any) -> Any:
    """Return a value of ``meta``, whose lists are tuples."""
    return tuple(map(_as_read, value)) if isinstance(value, list) else value


def stored_examples(
    read: Callable[[], Sequence[Seq2SeqExample]], *, name: str, folders: Sequence[Path], key: Mapping[str, Any]
) -> StoredExamples:
    """Return the examples of a split from a store, made here unless an earlier run or another rank has made it.

    Args:
        read: reads the split; called where there is no store, which takes the memory of all examples once.
        name: of the split, for the store's name.
        folders: that hold the task's files, the first of them (or where ``GLM_CACHE_DIR`` says) the store, too. It is
            made again when a file in them is changed, added or removed.
        key: what else decides what is read, as JSON values.

    Raises:
        ValueError, OSError: as ``read`` does, and where no store can be written.
    """
    folders = [folder.absolute() for folder in folders]
    layout = {"format_version": FORMAT_VERSION, "fields": [one.name for one in fields(Seq2SeqExample)]}
    text = json.dumps({**key, **layout, "folders": list(map(str, folders))}, sort_keys=True)
    stem = f"{name}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:10]}"
    places = [folder / stem for folder in cache_folders(folders[0])]
    sources = _listing(folders)

    def current(prefix: Path) -> StoredExamples | None:
        try:
            details = read_details(prefix)
            return StoredExamples(prefix) if details is not None and details["sources"] == sources else None
        except ValueError as error:
            logger.warning(f"{error}: it is made again")
            return None

    for prefix in places:
        if examples := current(prefix):
            return examples
    prefix = first_writable(places)
    lock = prefix.with_name(f"{stem}.lock")
    try:
        with locked(lock, waiting=lambda holder: logger.info(f"waiting for {holder}, which makes {prefix}")):
            examples = current(prefix)
            if examples is None:
                _write(read(), prefix, sources)
                examples = StoredExamples(prefix)
    except BaseException:
        with contextlib.suppress(OSError):
            prefix.parent.rmdir()  # if nothing else is in it
        raise
    return examples


def _listing(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Say what files there are in folders and how they are: sizes and times, as a checksum."""
    found, seen = [], set()
    for folder in folders:
        for place, inside, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(place)
            inside[:] = [name for name in inside if name not in NOT_DATA and real not in seen]  # links may lead back
            seen.add(real)
            for path in (Path(place, name) for name in names):
                if path.is_file():
                    found.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    text = json.dumps(sorted(found))
    return [{"files": len(found), "sha256": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}]


def _write(examples: Sequence[Seq2SeqExample], prefix: Path, sources: list[dict[str, Any]]) -> None:
    writer = StoreWriter(prefix, dtype=np.uint8)
    try:
        for example in examples:
            data = np.frombuffer(json.dumps(asdict(example), ensure_ascii=False).encode("utf-8"), dtype=np.uint8)
            writer.add(data, np.array([len(data)]), np.zeros(1, dtype=np.int64))
        writer.publish({"kind": "text", "sources": sources, "rows": len(examples)})
    except BaseException:
        writer.discard()
        raise
    logger.info(f"{len(examples):,} examples, {writer.num_tokens:,} bytes -> {prefix}")
