"""Join the stores of the shards of a corpus to the store that one machine would have made.

    python -m data_utils.corpora.merge STORES [--one-file]

STORES is the folder that ``data_utils.corpora.prepare --shard`` wrote to, or several. The ids stay where they are: each
file of a shard gets a second name (a hard link), ``X.bin.00000`` and so on, or is copied where the file system has no
links. Training reads them as one file; ``cat X.bin.*`` is that file, and ``--one-file`` makes it.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.corpora.duplicates import SeenHashes, first_of
from data_utils.corpora.files import Shard
from data_utils.corpora.store import IndexedDataset, StoreWriter, read_details
from data_utils.corpora.tokenization import MALFORMED_LISTED, add_counts, empty_line, shard_prefix
from files.errors import run_main
from files.locks import locked

logger = logging.getLogger("glm")

SHARD_NAME = re.compile(r"(.+)-shard-(\d{5,})-of-(\d{5,})\.json")
MOST_PARTS = 256  # each is a file that is kept open
COPIED_DOCUMENTS = 4096  # at a time
ALIKE = ("format_version", "dtype", "kind", "tokenizer_fingerprint", "corpus", "sources", "commands_in_text",
         "prompts_inside")  # fmt: skip


def sharded_stores(folder: Path) -> list[tuple[Path, int]]:
    """Return what shards there are in a folder: prefix of the whole store and number of shards, sorted.

    Raises:
        ValueError: none, or of one store in several divisions.
    """
    names = [match for path in folder.glob("*.json") if (match := SHARD_NAME.fullmatch(path.name))]
    found = sorted({(folder / match[1], int(match[3])) for match in names})
    if not found:
        raise ValueError(f"{folder} holds no store of a shard; data_utils.corpora.prepare --shard 1/4 makes one")
    for (prefix, count), (other, other_count) in pairwise(found):
        if prefix == other:
            raise ValueError(
                f"{prefix} has shards of {count} and of {other_count}: delete {prefix}-shard-* of one of the two"
            )
    return found


def merge(prefix: Path, count: int, *, one_file: bool = False) -> IndexedDataset:
    """Join shards 1 to ``count`` of a store; they stay.

    Raises:
        ValueError: a shard is missing, damaged, or of other text or another tokenizer than the first.
    """
    shards = [Shard(number, count) for number in range(1, count + 1)]
    missing = [str(shard) for shard in shards if read_details(shard_prefix(prefix, shard)) is None]
    if missing:
        names = ", ".join(missing)
        raise ValueError(f"{prefix}: shard {names} is missing: run prepare again with --shard {missing[0]}")
    if count > MOST_PARTS and not one_file:
        raise ValueError(f"{prefix}: {count} shards; more than {MOST_PARTS} are joined to one file only: --one-file")
    first = read_details(shard_prefix(prefix, shards[0]))
    assert first is not None
    with locked(prefix.with_name(prefix.name + ".lock"), waiting=lambda holder: logger.info(f"waiting for {holder}")):
        drops = first["duplicates"] is not None
        writer = StoreWriter(
            prefix, dtype=np.dtype(first["dtype"]).type, prompts_inside=first["prompts_inside"], with_hashes=drops
        )
        try:
            details = _add_shards(writer, [shard_prefix(prefix, shard) for shard in shards], first, one_file)
            writer.publish(details)
        except BaseException:
            writer.discard()
            raise
    return IndexedDataset(prefix, is_checked=True)


def _add_shards(writer: StoreWriter, prefixes: Sequence[Path], first: dict[str, Any], one_file: bool) -> dict[str, Any]:
    """Write what the shards hold; return the description of the whole."""
    seen = None if first["duplicates"] is None else SeenHashes(writer.prefix.parent)
    whole: dict[str, Any] = {"rows": 0, "malformed": 0, "first_malformed": [], "cut": []}
    groups: dict[str, int] = {}
    commands: dict[str, int] = {}
    duplicates = 0
    for prefix in prefixes:
        store = IndexedDataset(prefix)
        details = store.details
        assert details is not None
        for name in ALIKE:
            if details[name] != first[name]:
                raise ValueError(f"{prefix}: {name} is not that of {prefixes[0]}: make this shard again from its text")
        if (details["duplicates"] is None) != (seen is None):
            raise ValueError(f"{prefix} and {prefixes[0]}: only one of them was made with --drop-duplicates")
        kept = None
        if seen is not None:
            mask = first_of(store.hashes(), seen)
            duplicates += details["duplicates"] + len(mask) - int(mask.sum())
            kept = None if mask.all() else np.flatnonzero(mask)
        _add_store(writer, store, kept, one_file)
        whole["rows"] += details["rows"]
        whole["malformed"] += details["malformed"]["count"]
        whole["first_malformed"] += details["malformed"]["first"]
        whole["cut"] += details["cut"]
        add_counts(groups, details["tokens_by_group"])
        add_counts(commands, details["command_texts"])
    if writer.num_tokens == 0:
        raise ValueError(empty_line(first["corpus"], whole, len(first["sources"]), writer.num_documents))
    return {
        "kind": first["kind"],
        "tokenizer_fingerprint": first["tokenizer_fingerprint"],
        "corpus": first["corpus"],
        "sources": first["sources"],
        "rows": whole["rows"],
        "malformed": {"count": whole["malformed"], "first": whole["first_malformed"][:MALFORMED_LISTED]},
        "cut": whole["cut"],
        "tokens_by_group": groups,
        "command_texts": dict(sorted(commands.items())),
        "commands_in_text": first["commands_in_text"],
        **({} if seen is None else {"duplicates": duplicates}),
    }


def _add_store(writer: StoreWriter, store: IndexedDataset, kept: np.ndarray | None, one_file: bool) -> None:
    """Append a shard, or the documents ``kept`` of it [n]: its file of ids, or in one file a copy."""
    if kept is None and not one_file:
        writer.share(store)
        return
    chosen = np.arange(len(store)) if kept is None else kept
    for start in range(0, len(chosen), COPIED_DOCUMENTS):
        numbers = chosen[start : start + COPIED_DOCUMENTS]
        documents = [store[number] for number in numbers]
        writer.add(
            np.concatenate([document.tokens for document in documents]),
            store.lengths[numbers],
            np.array([document.prompt_length for document in documents]),
            np.concatenate([document.loss_mask() for document in documents]) if writer.prompts_inside else None,
            store.hashes()[numbers] if writer.with_hashes else None,
        )
    if not one_file:
        writer.next_part()


def main(argv: Sequence[str] | None = None) -> int:
    """Join the shards of every corpus in the folders."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.corpora.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="+", type=Path, help="folders of the shards")
    parser.add_argument("--one-file", action="store_true", help="copy the ids to one file, for Megatron's own readers")
    values = parser.parse_args(argv)
    for folder in values.stores:
        for prefix, count in sharded_stores(folder):
            store = merge(prefix, count, one_file=values.one_file)
            print(
                f"{prefix}: {len(store)} documents, {store.num_tokens} tokens of {count} shards; the shards are not "
                f"needed any more: rm {prefix}-shard-*"
            )
    return 0


if __name__ == "__main__":
    run_main(main)
