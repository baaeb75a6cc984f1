"""Memory-mapped store of documents in Megatron's public .bin/.idx layout (docs/formats.md#token-store).

``<prefix>.idx``  9 bytes ``MMIDIDX\\0\\0``, u64 version 1, u8 type code, u64 number of sequences n, u64 number of
document entries (n + 1), int32 lengths [n], int64 byte offsets [n], int64 document index [n + 1]; little endian.
``<prefix>.bin``  the ids of all documents back to back.
Beside them, ours: ``<prefix>.prompts.npy`` int32 [n], how many tokens in front of each document are not predicted;
``<prefix>.mask.bin`` one byte per token, 1 = predicted, only for corpora with prompts inside of documents;
``<prefix>.hashes.npy`` uint64 [n], what tells equal documents, where duplicates were dropped; and ``<prefix>.json``,
written last, which says what the store holds, which tokenizer made it, and the sizes and SHA-256 of the other files.

A store that was merged from shards may have its ids in several files ``<prefix>.bin.00000`` ..., which are the ``.bin``
one behind the other; no document lies in two of them.

A store of text (``--no-pre-tokenize``) is the same with UTF-8 bytes in place of ids; it is tokenized on access.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import struct
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from files.checksums import HashingFile, sha256_of
from files.reading import described, read_json, value_of
from files.writing import write_whole

logger = logging.getLogger("glm")

MAGIC = b"MMIDIDX\x00\x00"
INDEX_VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
FORMAT_VERSION = 1  # of the sidecar and of what lies beside .bin and .idx
SUFFIXES = (
    ".bin",
    ".prompts.npy",
    ".mask.bin",
    ".hashes.npy",
    ".idx",
    ".json",
)  # in the order in which they get their names
PART = re.compile(r"\.bin\.\d{5}")  # of the ids, in a file of its own
TEMPORARY = ".tmp"
PROGRESS = ".progress.json"  # with TEMPORARY: what a killed process had written
SAVING_SHARE = 0.05  # of the time goes into writing that down
KINDS = ("tokens", "text")
COPIED_ITEMS = 1 << 20  # at a time
HASHED_BYTES = 64 << 20  # a store up to this size is compared with its checksums when it is opened
SCANNED_IDS = 1 << 24  # of a store at a time
SCANNED_PARTS = 4  # of a store that another program made, when it is opened
SCANNED_ENDS = 1024  # documents of such a store that tell whether an end token closes each of them


@dataclass(frozen=True)
class Document:
    """Token ids of one document.

    Attributes:
        tokens: ids [s].
        prompt_length: how many of them, in front, are read but not predicted.
        predicted: 1 = predicted [s], for documents with prompts inside; None: all after the prompt.
    """

    tokens: np.ndarray
    prompt_length: int = 0
    predicted: np.ndarray | None = None

    def loss_mask(self) -> np.ndarray:
        """Return 1 for each token that is to be predicted, else 0, int64 [s]."""
        if self.predicted is not None:
            return self.predicted.astype(np.int64)
        mask = np.ones(len(self.tokens), dtype=np.int64)
        mask[: self.prompt_length] = 0
        return mask


class Documents(Protocol):
    """A sequence of documents that knows their lengths (prompt and text, without eos), int64 [n]."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Document: ...


# ------------------------------------------------------------------------------------------------------ reading


class IndexedDataset:
    """The documents of one store, mapped into memory (or read into it)."""

    def __init__(
        self,
        path: str | Path,
        tokenizer_fingerprint: str | None = None,
        *,
        in_memory: bool = False,
        is_checked: bool = False,
    ) -> None:
        """Open a store; its structure is checked, and where it is small, its checksums.

        Args:
            path: its prefix; the name of any of its files will do.
            tokenizer_fingerprint: of the tokenizer that is going to read the ids; None does not ask.
            in_memory: read the ids into memory instead of mapping the file.
            is_checked: the checksums were compared before.

        Raises:
            ValueError: missing, damaged, of an unknown version, or made by another tokenizer.
        """
        self.prefix = store_prefix(path)
        self._arguments = (str(self.prefix), tokenizer_fingerprint, in_memory)
        self.details = read_details(self.prefix)
        if self.details is not None and tokenizer_fingerprint is not None:
            made_by = self.details["tokenizer_fingerprint"]
            if made_by != tokenizer_fingerprint:
                raise ValueError(
                    f"store {self.prefix} was made by another tokenizer (fingerprint {made_by}, not "
                    f"{tokenizer_fingerprint}): tokenize the corpus again, or give the tokenizer flags it was made with"
                )
        index = _with_suffix(self.prefix, ".idx")
        self.dtype, self.lengths, self._offsets = _read_index(index)
        tokens = int(self.lengths.sum())
        if self.details is not None:
            found = {"dtype": self.dtype.name, "documents": len(self.lengths), "tokens": tokens}
            for name, value in found.items():
                if self.details[name] != value:
                    problem = f"{name} are {value}, in the store's .json {self.details[name]}"
                    raise ValueError(f"{index} is damaged: {problem}; {AGAIN}")
        names, sizes = [".bin"], [tokens]
        if parts := _parts_of(self.details):
            names, sizes = list(parts), [size // self.dtype.itemsize for size in parts.values()]
        if sum(sizes) != tokens:
            raise ValueError(f"{index} is damaged: {tokens} tokens, in the files {sum(sizes)}; {AGAIN}")
        self._parts = [
            _open_array(_with_suffix(self.prefix, name), self.dtype, size, in_memory=in_memory)
            for name, size in zip(names, sizes)
        ]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        _check_ends(index, self._ends[:-1], self._offsets, self.dtype)
        prompts = _with_suffix(self.prefix, ".prompts.npy")
        self._prompts: np.ndarray | None = None
        if prompts.is_file() or self.details is not None:
            self._prompts = _read_prompts(prompts, self.lengths, in_memory=in_memory)
        self._mask: np.ndarray | None = None
        mask = _with_suffix(self.prefix, ".mask.bin")
        if self.details is None and mask.is_file():
            raise ValueError(f"{_with_suffix(self.prefix, '.json')} is missing, which says what {mask} is; {AGAIN}")
        if self.details is not None and self.details["prompts_inside"]:
            self._mask = _open_array(mask, np.dtype(np.uint8), tokens, in_memory=in_memory)
        if self.details is not None and not is_checked:
            check_files(self.prefix, self.details, full=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process map the files again instead of receiving a copy of them."""
        return _reopen, self._arguments

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens in all documents."""
        return int(self._ends[-1])

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the ids of all documents, back to back, in parts."""
        for part in self._parts:
            yield from np.split(part, range(SCANNED_IDS, len(part), SCANNED_IDS))

    def hashes(self) -> np.ndarray:
        """Return what tells equal documents, uint64 [n]. Raises ValueError where nobody looked for duplicates."""
        try:
            return read_numbers(_with_suffix(self.prefix, ".hashes.npy"), len(self), in_memory=False)
        except ValueError as error:
            raise ValueError(f"{error}: duplicates are known of stores that --drop-duplicates made") from None

    def masks(self) -> Iterator[np.ndarray]:
        """Yield 1 for each token that is predicted, else 0, uint8, in parts, of a store with prompts inside."""
        assert self._mask is not None
        yield from np.split(self._mask, range(SCANNED_IDS, len(self._mask), SCANNED_IDS))

    def prompt_lengths(self) -> np.ndarray:
        """Return how many tokens of each document are not predicted, integers [n]."""
        return np.zeros(len(self), np.int32) if self._prompts is None else self._prompts

    def __getitem__(self, index: int) -> Document:
        index = checked_index(index, len(self))
        start = int(self._offsets[index]) // self.dtype.itemsize
        end = start + int(self.lengths[index])
        prompt_length = 0 if self._prompts is None else int(self._prompts[index])
        predicted = None if self._mask is None else self._mask[start:end]
        if len(self._parts) == 1:
            return Document(self._parts[0][start:end], prompt_length, predicted)
        part = min(int(self._ends.searchsorted(start, side="right")), len(self._parts) - 1)
        before = int(self._ends[part]) - len(self._parts[part])
        return Document(self._parts[part][start - before : end - before], prompt_length, predicted)


def _reopen(path: str, tokenizer_fingerprint: str | None, in_memory: bool) -> IndexedDataset:
    return IndexedDataset(path, tokenizer_fingerprint, in_memory=in_memory, is_checked=True)


class KnownIds:
    """Documents whose ids are compared with those of a tokenizer, where nothing says which tokenizer made them."""

    def __init__(self, documents: Any, num_ids: int, *, name: str, end: int | None = None) -> None:
        """``documents`` has ``parts``; the first ones are compared here, the others when a document is asked for.

        The token ``end`` is left out where it closes every document (Megatron's ``--append-eod``): packing adds one.
        Raises ValueError for an id below 0, or from ``num_ids`` on.
        """
        self.documents = documents
        self.num_ids = num_ids
        self.name = name
        for ids in itertools.islice(documents.parts(), SCANNED_PARTS):
            self._check(ids)
        looked_at = np.linspace(0, len(documents) - 1, min(len(documents), SCANNED_ENDS)).astype(np.int64)
        last = [ids[-1] for index in looked_at if len(ids := documents[index].tokens)]
        self._end = end if last and all(token == end for token in last) else None
        if self._end is not None:
            logger.info(f"{name}: the id {end} at the end of every document is left out, because packing adds it")

    def _check(self, ids: np.ndarray) -> None:
        if len(ids) and (ids.max() >= self.num_ids or ids.min() < 0):
            wrong = int(ids.max()) if ids.max() >= self.num_ids else int(ids.min())
            raise ValueError(
                f"{self.name} holds the id {wrong}, the tokenizer has 0 .. {self.num_ids - 1}: it is damaged, or was "
                "made by another tokenizer (see --tokenizer-type)"
            )

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, int64 [n]."""
        lengths = self.documents.lengths
        return lengths if self._end is None else lengths - (lengths > 0)

    def __getitem__(self, index: int) -> Document:
        document = self.documents[index]
        self._check(document.tokens)
        if self._end is not None and len(document.tokens) and document.tokens[-1] == self._end:
            return Document(document.tokens[:-1])
        return document


class TextDocuments:
    """Documents that are kept as text and tokenized when they are asked for; lengths count bytes."""

    def __init__(
        self, texts: Documents, *, encode: Callable[[str], Sequence[int]], prepare: Callable[[str], str] | None = None
    ) -> None:
        """``texts`` holds UTF-8 bytes in place of ids; ``prepare`` changes a text before it is encoded."""
        self.texts = texts
        self._encode = encode
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of bytes of each document, int64 [n]."""
        return self.texts.lengths

    def __getitem__(self, index: int) -> Document:
        document = self.texts[index]
        data = document.tokens.tobytes()
        try:
            prompt, text = (
                self._ids(part) for part in (data[: document.prompt_length], data[document.prompt_length :])
            )
        except UnicodeDecodeError:
            raise ValueError(f"document {index} of the stored text is damaged: it is not UTF-8; {AGAIN}") from None
        return Document(np.array(prompt + text, dtype=np.int64), len(prompt))

    def _ids(self, data: bytes) -> list[int]:
        text = data.decode("utf-8")
        if not text:
            return []
        return list(self._encode(self._prepare(text) if self._prepare else text))


class DocumentSubset:
    """Some documents of another sequence of documents, in a given order."""

    def __init__(self, documents: Documents, indices: np.ndarray | Sequence[int]) -> None:
        self.documents = documents
        self.indices = np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, int64 [n]."""
        return np.asarray(self.documents.lengths)[self.indices]

    def __getitem__(self, index: int) -> Document:
        return self.documents[int(self.indices[checked_index(index, len(self))])]


class ConcatenatedDocuments:
    """Several sequences of documents, one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = list(parts)
        self.cumulative_sizes = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.cumulative_sizes[-1]) if self.parts else 0

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each document, int64 [n]."""
        return np.concatenate([np.zeros(0, np.int64), *(np.asarray(part.lengths, np.int64) for part in self.parts)])

    def __getitem__(self, index: int) -> Document:
        index = checked_index(index, len(self))
        part = int(np.searchsorted(self.cumulative_sizes, index, side="right"))
        before = int(self.cumulative_sizes[part - 1]) if part else 0
        return self.parts[part][index - before]


def concatenate_documents(parts: Sequence[Documents]) -> Documents:
    """Join sequences of documents; a single one is returned as it is."""
    return parts[0] if len(parts) == 1 else ConcatenatedDocuments(parts)


def checked_index(index: int, length: int) -> int:
    """Return a list index as one from 0 on; IndexError outside (it also ends iteration)."""
    index = int(index)
    if not -length <= index < length:
        raise IndexError(f"document {index} of {length}")
    return index % length


def store_prefix(path: str | Path) -> Path:
    """Return the prefix of a store from the name of one of its files, or from the prefix itself."""
    name = str(path)
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return Path(name.removesuffix(suffix))
    if PART.fullmatch(name[-len(part_name(0)) :]):
        return Path(name[: -len(part_name(0))])
    return Path(name)


def part_name(number: int) -> str:
    """Return the suffix of a file that holds a part of the ids."""
    return f".bin.{number:05d}"


def _parts_of(details: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the files of the ids and their bytes; none where there is one ``.bin``."""
    files = (details or {}).get("files") or {}
    return {name: files[name]["bytes"] for name in sorted(files) if PART.fullmatch(name)}


def _check_ends(index: Path, ends: np.ndarray, offsets: np.ndarray, dtype: np.dtype) -> None:
    """Refuse files of ids that end inside of a document."""
    places = np.searchsorted(offsets, ends * dtype.itemsize)
    inside = places < len(offsets)
    if (np.asarray(offsets[places[inside]]) != ends[inside] * dtype.itemsize).any():
        raise ValueError(f"{index} is damaged: a file of the ids ends inside of a document; {AGAIN}")


def is_store(path: str | Path) -> bool:
    """Tell whether a path names a store: its prefix, .idx or .bin file."""
    if str(path).endswith((".json", ".npy")):
        return False
    prefix = store_prefix(path)
    return _with_suffix(prefix, ".idx").is_file() and any(
        _with_suffix(prefix, name).is_file() for name in (".bin", part_name(0))
    )


def read_details(prefix: Path) -> dict[str, Any] | None:
    """Return the sidecar of a store with every key; None when there is none (a store that another program made).

    A key that earlier versions did not write is None, ``kind`` "tokens".

    Raises:
        ValueError: damaged, or of another format version.
    """
    path = _with_suffix(prefix, ".json")
    if not path.is_file():
        return None
    try:
        return _checked_details(read_json(path), str(path))
    except ValueError as error:
        raise ValueError(f"{error}: this file of a token store is damaged; {AGAIN}") from None


def _checked_details(details: dict[str, Any], place: str) -> dict[str, Any]:
    version = value_of(details, "format_version", int, place=place)
    if version != FORMAT_VERSION:
        raise ValueError(f"{place}: format version {version}, this program reads {FORMAT_VERSION}")
    checked: dict[str, Any] = {"format_version": version}
    checked["dtype"] = value_of(details, "dtype", str, place=place)
    for name in ("documents", "tokens"):
        checked[name] = value_of(details, name, int, place=place, at_least=0)
    checked["prompts_inside"] = value_of(details, "prompts_inside", bool, place=place)
    checked["kind"] = value_of(details, "kind", str, place=place, default="tokens")
    if checked["kind"] not in KINDS:
        raise ValueError(f"{place}: kind is {described(checked['kind'])}; it is one of {', '.join(KINDS)}")
    for name, kind in _OPTIONAL.items():
        checked[name] = value_of(details, name, kind, place=place, default=None)
    malformed = checked["malformed"] or {"count": 0, "first": []}
    first = value_of(malformed, "first", list, place=f"{place}, malformed")
    count = value_of(malformed, "count", int, place=f"{place}, malformed", at_least=len(first))
    if bool(count) != bool(first) or not all(isinstance(line, str) for line in [*first, *(checked["cut"] or [])]):
        raise ValueError(f"{place}: malformed is {described(malformed)}; a count and the first lines are needed")
    checked["malformed"] = malformed
    for name, entry in (checked["files"] or {}).items():
        where = f"{place}, {name}"
        if not isinstance(entry, dict) or not (name in SUFFIXES or PART.fullmatch(name)):
            raise ValueError(f"{where}: {described(entry)}; the size and the checksum of a file are needed")
        value_of(entry, "bytes", int, place=where, at_least=0)
        value_of(entry, "sha256", str, place=where)
    if (checked["files"] or checked["sha256"]) and checked["sha256"] != _checksum_of(details):
        raise ValueError(f"{place}: it is not what was written (its own checksum differs)")
    return checked


_OPTIONAL = {
    "tokenizer_fingerprint": str, "corpus": str, "sources": list, "rows": int, "malformed": dict, "cut": list,
    "tokens_by_group": dict, "commands_in_text": bool, "command_texts": dict, "files": dict, "sha256": str,
    "duplicates": int, "shard": str,
}  # fmt: skip
AGAIN = "delete the store and tokenize the corpus again"


def _checksum_of(details: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a sidecar without its own checksum."""
    text = json.dumps({name: details[name] for name in sorted(details) if name != "sha256"}, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_files(prefix: Path, details: Mapping[str, Any], *, full: bool) -> None:
    """Compare the files of a store with the sizes and checksums in its sidecar.

    Checksums are compared where the store is small; with ``full`` always. A store of an earlier version has none.

    Raises:
        ValueError: a file is missing or damaged.
    """
    if details["files"] is None:
        logger.info(f"{prefix}: made by an earlier version, without checksums: only its structure is checked")
        return
    is_small = sum(entry["bytes"] for entry in details["files"].values()) <= HASHED_BYTES
    for name, entry in details["files"].items():
        path = _with_suffix(prefix, name)
        if not path.is_file():
            raise ValueError(f"{path} is missing; {AGAIN}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path} is damaged: {size} bytes, {entry['bytes']} expected; {AGAIN}")
        if (full or is_small) and sha256_of(path) != entry["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one that was written; {AGAIN}")


def verify_store(path: str | Path, *, full: bool) -> IndexedDataset:
    """Open a store and compare all of it with its checksums (``full``), or what opening it compares.

    Raises:
        ValueError: damaged; one line.
    """
    store = IndexedDataset(path)
    if full and store.details is not None:
        check_files(store.prefix, store.details, full=True)
    return store


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Return (dtype of the ids, lengths int64 [n], byte offsets int64 [n]) of the documents.

    Several sequences of another program's store may make up one document.

    Raises:
        ValueError: missing, damaged, or of an unknown layout.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
    except FileNotFoundError:
        raise ValueError(f"no token store at {path.with_suffix('')}: {path} is missing") from None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} is not an index in Megatron's layout (it begins with {header[:9]!r})")
    _, version, code, num_sequences, num_entries = HEADER.unpack(header)
    if version != INDEX_VERSION or code not in TYPE_CODES:
        raise ValueError(f"{path}: version {version} with type code {code} is unknown (version 1, codes 1-5 and 8)")
    expected = HEADER.size + 12 * num_sequences + 8 * num_entries
    if path.stat().st_size != expected:
        raise ValueError(f"{path} is damaged: {path.stat().st_size} bytes, {expected} expected; {AGAIN}")
    data = np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray)
    ends = np.cumsum([HEADER.size, 4 * num_sequences, 8 * num_sequences, 8 * num_entries])
    lengths = data[ends[0] : ends[1]].view("<i4").astype(np.int64)
    offsets = data[ends[1] : ends[2]].view("<i8")
    first_sequences = data[ends[2] : ends[3]].view("<i8")
    dtype = np.dtype(TYPE_CODES[code]).newbyteorder("<")
    if len(lengths) and (
        lengths.min() < 0 or not np.array_equal(offsets, (lengths.cumsum() - lengths) * dtype.itemsize)
    ):
        raise ValueError(f"{path} is damaged: offsets and lengths of its documents do not fit together; {AGAIN}")
    if len(first_sequences) == 0 or first_sequences[0] != 0 or first_sequences[-1] != num_sequences:
        raise ValueError(f"{path} is damaged: its documents do not hold its {num_sequences} sequences; {AGAIN}")
    steps = np.diff(first_sequences)
    if not (steps == 1).all():
        if steps.min() < 0:
            raise ValueError(f"{path} is damaged: its documents are not in order; {AGAIN}")
        logger.info(f"{path}: {num_sequences} sequences make up {num_entries - 1} documents")
        starts = np.concatenate([[0], lengths.cumsum()])[first_sequences]
        lengths, offsets = np.diff(starts), starts[:-1] * dtype.itemsize
    return dtype, lengths, offsets


def map_array(path: Path, dtype: np.dtype, *, in_memory: bool, start: int = 0) -> np.ndarray:
    """Map a flat array file into memory, or read it, from byte ``start`` on."""
    if path.stat().st_size == start:
        return np.zeros(0, dtype)
    if in_memory:
        return np.fromfile(path, dtype, offset=start)
    return np.memmap(path, mode="r", dtype=dtype, offset=start).view(np.ndarray)


def _open_array(path: Path, dtype: np.dtype, length: int, *, in_memory: bool) -> np.ndarray:
    """Map or read a flat array file of a known length."""
    size = path.stat().st_size if path.is_file() else -1
    if size != length * dtype.itemsize:
        state = "missing" if size < 0 else f"damaged: {size} bytes, {length * dtype.itemsize} expected"
        raise ValueError(f"{path} is {state}; {AGAIN}")
    return map_array(path, dtype, in_memory=in_memory)


def _read_prompts(path: Path, lengths: np.ndarray, *, in_memory: bool) -> np.ndarray:
    """Map or read the prompt lengths."""
    try:
        prompts = read_numbers(path, len(lengths), in_memory=in_memory)
    except ValueError as error:
        raise ValueError(f"{error}: damaged; {AGAIN}") from None
    if len(prompts) and (prompts.min() < 0 or (prompts > lengths).any()):
        raise ValueError(f"{path} is damaged: a prompt is longer than its document; {AGAIN}")
    return prompts


def read_numbers(path: Path, count: int, *, in_memory: bool) -> np.ndarray:
    """Return the ``count`` whole numbers of a .npy file, mapped or read.

    Raises:
        ValueError: missing, or anything else than that; nothing is allocated for it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with path.open("rb") as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            start = file.tell()
    except (
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        SyntaxError,
        ArithmeticError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ):
        raise ValueError(f"{path} is no .npy file") from None
    if shape != (count,) or dtype.kind not in "iu":
        raise ValueError(f"{path} holds {dtype.name} {described(shape)}, {count} whole numbers are needed")
    if path.stat().st_size != start + count * dtype.itemsize:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, {start + count * dtype.itemsize} expected")
    return map_array(path, dtype, in_memory=in_memory, start=start)


# ------------------------------------------------------------------------------------------------------ writing


class StoreWriter:
    """Write a store in parts; memory does not grow with it.

    Everything goes to files with temporary names. ``publish`` gives them their names, the sidecar last: a store with a
    sidecar is whole. One process at a time may write a store (see the lock in ``tokenization``).

    With ``key``, ``save`` notes from time to time what is written and how far the caller is (``state``, JSON). A writer
    with the same key goes on there after the process was killed: ``saved`` is the state then, otherwise None.
    """

    def __init__(
        self,
        prefix: str | Path,
        *,
        dtype: type[np.generic],
        prompts_inside: bool = False,
        with_hashes: bool = False,
        key: Mapping[str, Any] | None = None,
    ) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.prompts_inside = prompts_inside
        self.with_hashes = with_hashes
        self.num_documents = 0
        self.num_tokens = 0
        names = [".lengths", ".prompts"]
        names += [".mask.bin"] * prompts_inside + [".hashes"] * with_hashes
        self._key = json.loads(json.dumps({**(key or {}), "dtype": self.dtype.name, "names": names}))  # as it is read
        found = self._saved_progress()
        if found is None:
            self.remove_leftovers(self.prefix)
        self.saved: dict[str, Any] | None = None if found is None else found["state"]
        mode: Literal["rb+", "wb+"] = "wb+" if found is None else "rb+"
        self._files: dict[str, BinaryIO] = {name: self._temporary(name).open(mode) for name in [".bin", *names]}
        self._hashed = {name: HashingFile(self._files[name]) for name in self._files if name in SUFFIXES}
        self._shared: dict[str, dict[str, Any]] = {}  # files that this store has in common with others
        self._began, self._saving = time.monotonic(), 0.0
        if found is not None:
            self._go_on(found)

    def _temporary(self, suffix: str) -> Path:
        return _with_suffix(self.prefix, suffix + TEMPORARY)

    @staticmethod
    def remove_leftovers(prefix: Path) -> None:
        """Delete what a killed process left half-written."""
        for path in prefix.parent.glob(f"{glob.escape(prefix.name)}.*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _saved_progress(self) -> dict[str, Any] | None:
        """Return what a killed process with the same key noted, where its files hold all that."""
        try:
            found = json.loads(self._temporary(PROGRESS).read_text(encoding="utf-8"))
            if found["key"] != self._key:
                return None
            sizes = found["sizes"]
            if any(self._temporary(name).stat().st_size < size for name, size in sizes.items()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found

    def _go_on(self, found: Mapping[str, Any]) -> None:
        """Cut the files to what was noted, and read again what has a checksum."""
        self.num_documents, self.num_tokens = found["documents"], found["tokens"]
        for name, size in found["sizes"].items():
            file = self._files[name]
            file.truncate(size)
            if name in self._hashed:
                self._hashed[name].read_again()
            file.seek(size)

    def save(self, state: Mapping[str, Any]) -> None:
        """Note what is written, unless that would take too large a share of the time."""
        now = time.monotonic()
        if self._saving > SAVING_SHARE * (now - self._began):
            return
        with self._naming_the_store():
            for file in self._files.values():
                _flush(file)
            found = {
                "key": self._key,
                "documents": self.num_documents,
                "tokens": self.num_tokens,
                "sizes": {name: file.tell() for name, file in self._files.items()},
                "state": state,
            }
            write_whole(self._temporary(PROGRESS), json.dumps(found, ensure_ascii=False))
        self._saving += time.monotonic() - now

    def add(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        prompt_lengths: np.ndarray,
        predicted: np.ndarray | None = None,
        hashes: np.ndarray | None = None,
    ) -> None:
        """Append documents: their ids back to back, lengths [n], prompt lengths [n], 0/1 per token, hashes [n]."""
        assert int(lengths.sum()) == len(tokens) and len(lengths) == len(prompt_lengths)
        with self._naming_the_store():
            self._hashed[".bin"].write(tokens.astype(self.dtype, copy=False).tobytes())
            if predicted is not None:
                self._hashed[".mask.bin"].write(predicted.astype(np.uint8, copy=False).tobytes())
        assert (predicted is not None) == self.prompts_inside
        self._describe(lengths, prompt_lengths, hashes)

    def share(self, store: IndexedDataset) -> None:
        """Append a store; a hard link to its ``.bin``, or a copy of it, is a part of this one."""
        assert store.details is not None
        name = part_name(len(self._shared))
        source = _with_suffix(store.prefix, ".bin")
        with self._naming_the_store():
            try:
                os.link(source, self._temporary(name))
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, self._temporary(name))
                with self._temporary(name).open("rb+") as file:
                    _flush(file)
        self._shared[name] = store.details["files"][".bin"]
        for start in range(0, len(store), COPIED_ITEMS):
            chosen = slice(start, start + COPIED_ITEMS)
            hashes = store.hashes()[chosen] if self.with_hashes else None
            self._describe(store.lengths[chosen], store.prompt_lengths()[chosen], hashes)
        for mask in store.masks() if self.prompts_inside else ():
            self._hashed[".mask.bin"].write(mask.tobytes())

    def next_part(self) -> None:
        """Make a part of its own of what was added since the last one."""
        _flush(self._files[".bin"])
        self._files[".bin"].close()
        name = part_name(len(self._shared))
        self._temporary(".bin").replace(self._temporary(name))
        self._shared[name] = {
            "bytes": self._temporary(name).stat().st_size,
            "sha256": self._hashed[".bin"].sha256,
        }
        self._files[".bin"] = self._temporary(".bin").open("wb+")
        self._hashed[".bin"] = HashingFile(self._files[".bin"])

    def _describe(self, lengths: np.ndarray, prompt_lengths: np.ndarray, hashes: np.ndarray | None) -> None:
        """Append what is kept of documents beside their ids."""
        assert (hashes is not None) == self.with_hashes
        with self._naming_the_store():
            self._files[".lengths"].write(lengths.astype("<i4", copy=False).tobytes())
            self._files[".prompts"].write(prompt_lengths.astype("<i4", copy=False).tobytes())
            if hashes is not None:
                self._files[".hashes"].write(hashes.astype("<u8", copy=False).tobytes())
        self.num_documents += len(lengths)
        self.num_tokens += int(lengths.sum())

    def written_hashes(self) -> Iterator[np.ndarray]:
        """Yield the hashes of the documents so far, uint64, in parts; none where they are not kept."""
        yield from self._numbers(".hashes", "<u8") if self.with_hashes else ()

    def publish(self, details: dict[str, Any]) -> None:
        """Finish the store; ``details`` goes into its sidecar."""
        with self._naming_the_store():
            self._publish(details)

    def _publish(self, details: dict[str, Any]) -> None:
        self._write_index()
        self._write_list(".prompts.npy", ".prompts", "<i4")
        if self.with_hashes:
            self._write_list(".hashes.npy", ".hashes", "<u8")
        for name in (".bin", ".mask.bin"):
            if name in self._files:
                _flush(self._files[name])
        self.close()
        if self._shared:
            self._temporary(".bin").unlink()
            del self._hashed[".bin"]
        details = {
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "prompts_inside": self.prompts_inside,
            **details,
            "files": {
                **self._shared,
                **{
                    name: {"bytes": self._temporary(name).stat().st_size, "sha256": file.sha256}
                    for name, file in self._hashed.items()
                },
            },
        }
        with self._temporary(".json").open("w", encoding="utf-8") as file:
            json.dump({**details, "sha256": _checksum_of(details)}, file, ensure_ascii=False, indent=1)
            file.write("\n")
            _flush(file)
        _with_suffix(self.prefix, ".json").unlink(missing_ok=True)
        for path in self.prefix.parent.glob(f"{glob.escape(self.prefix.name)}.bin*"):  # of another store before
            if path.suffix != TEMPORARY:
                path.unlink()
        for suffix in [*self._shared, *SUFFIXES]:
            if self._temporary(suffix).exists():
                self._temporary(suffix).replace(_with_suffix(self.prefix, suffix))
        self.remove_leftovers(self.prefix)
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    @contextlib.contextmanager
    def _naming_the_store(self) -> Iterator[None]:
        """Say which store could not be written."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"the token store {self.prefix} cannot be written ({error.strerror or error}): make room, or name "
                "another folder (--data-cache-dir, or GLM_CACHE_DIR in the environment)"
            ) from None

    def discard(self) -> None:
        """Give up and leave nothing behind."""
        self.close()
        self.remove_leftovers(self.prefix)

    def close(self) -> None:
        """Close the files and leave them to a writer that goes on."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # what is still to be written does not fit, either
                file.close()

    def _write_index(self) -> None:
        code = next(code for code, dtype in TYPE_CODES.items() if np.dtype(dtype) == self.dtype.newbyteorder("="))
        count = self.num_documents
        with self._hashed_file(".idx") as file:
            file.write(HEADER.pack(MAGIC, INDEX_VERSION, code, count, count + 1))
            for lengths in self._numbers(".lengths"):
                file.write(lengths.tobytes())
            offset = 0
            for lengths in self._numbers(".lengths"):
                ends = offset + np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
                file.write((ends - lengths.astype("<i8") * self.dtype.itemsize).tobytes())
                offset = int(ends[-1])
            for start in range(0, count + 1, COPIED_ITEMS):
                file.write(np.arange(start, min(start + COPIED_ITEMS, count + 1), dtype="<i8").tobytes())

    def _write_list(self, suffix: str, name: str, dtype: str) -> None:
        header = {"descr": dtype, "fortran_order": False, "shape": (self.num_documents,)}
        with self._hashed_file(suffix) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for numbers in self._numbers(name, dtype):
                file.write(numbers.tobytes())

    @contextlib.contextmanager
    def _hashed_file(self, suffix: str) -> Iterator[HashingFile]:
        """Give a file of the store to write from its beginning to its end."""
        with self._temporary(suffix).open("wb") as file:
            self._hashed[suffix] = HashingFile(file)
            yield self._hashed[suffix]
            _flush(file)

    def _numbers(self, name: str, dtype: str = "<i4") -> Iterator[np.ndarray]:
        """Yield what was written to a list of numbers, in parts; what is written next comes behind it."""
        file = self._files[name]
        file.seek(0)
        while data := file.read(8 * COPIED_ITEMS):
            yield np.frombuffer(data, dtype=dtype)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
