"""Memory-mapped store of documents in Megatron's public .bin/.idx layout (docs/formats.md#token-store).

``<prefix>.idx``  9 bytes ``MMIDIDX\\0\\0``, u64 version 1, u8 type code, u64 number of sequences n, u64 number of
document entries (n + 1), int32 lengths [n], int64 byte offsets [n], int64 document index [n + 1]; little endian.
``<prefix>.bin``  the ids of all documents back to back.
Beside them, ours: ``<prefix>.prompts.npy`` int32 [n], how many tokens in front of each document are not predicted;
``<prefix>.mask.bin`` one byte per token, 1 = predicted, only for corpora with prompts inside of documents; and
``<prefix>.json``, written last, which says what the store holds and which tokenizer made it.

A store of text (``--no-pre-tokenize``) is the same with UTF-8 bytes in place of ids; it is tokenized on access.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
INDEX_VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
TYPE_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
FORMAT_VERSION = 1  # of the sidecar and of what lies beside .bin and .idx
SUFFIXES = (".bin", ".prompts.npy", ".mask.bin", ".idx", ".json")  # in the order in which they get their names
TEMPORARY = ".tmp"
COPIED_ITEMS = 1 << 20  # at a time


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

    def __init__(self, path: str | Path, tokenizer_fingerprint: str | None = None, *, in_memory: bool = False) -> None:
        """Open a store.

        Args:
            path: its prefix; the name of any of its files will do.
            tokenizer_fingerprint: of the tokenizer that is going to read the ids; None does not ask.
            in_memory: read the ids into memory instead of mapping the file.

        Raises:
            ValueError: missing, damaged, of an unknown version, or made by another tokenizer.
        """
        self.prefix = store_prefix(path)
        self._arguments = (str(self.prefix), tokenizer_fingerprint, in_memory)
        self.details = read_details(self.prefix)
        if self.details is not None and tokenizer_fingerprint is not None:
            made_by = self.details.get("tokenizer_fingerprint")
            if made_by != tokenizer_fingerprint:
                raise ValueError(
                    f"store {self.prefix} was made by another tokenizer (fingerprint {made_by}, not "
                    f"{tokenizer_fingerprint}): tokenize the corpus again, or give the tokenizer flags it was made with"
                )
        self.dtype, lengths, self._offsets = _read_index(_with_suffix(self.prefix, ".idx"))
        #: number of tokens of each document, int64 [n]
        self.lengths = np.asarray(lengths, dtype=np.int64)
        tokens = int(self.lengths.sum())
        self._tokens = _open_array(_with_suffix(self.prefix, ".bin"), self.dtype, tokens, in_memory=in_memory)
        prompts = _with_suffix(self.prefix, ".prompts.npy")
        self._prompts = _read_prompts(prompts, len(self.lengths), in_memory=in_memory) if prompts.is_file() else None
        mask = _with_suffix(self.prefix, ".mask.bin")
        has_mask = self.details is not None and self.details.get("prompts_inside", False)
        self._mask = _open_array(mask, np.dtype(np.uint8), tokens, in_memory=in_memory) if has_mask else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process map the files again instead of receiving a copy of them."""
        return _reopen, self._arguments

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens in all documents."""
        return len(self._tokens)

    def __getitem__(self, index: int) -> Document:
        index = checked_index(index, len(self))
        start = int(self._offsets[index]) // self.dtype.itemsize
        end = start + int(self.lengths[index])
        prompt_length = 0 if self._prompts is None else int(self._prompts[index])
        predicted = None if self._mask is None else self._mask[start:end]
        return Document(self._tokens[start:end], prompt_length, predicted)


def _reopen(path: str, tokenizer_fingerprint: str | None, in_memory: bool) -> IndexedDataset:
    return IndexedDataset(path, tokenizer_fingerprint, in_memory=in_memory)


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
        prompt = self._ids(data[: document.prompt_length])
        return Document(np.array(prompt + self._ids(data[document.prompt_length :]), dtype=np.int64), len(prompt))

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
    return Path(name)


def is_store(path: str | Path) -> bool:
    """Tell whether a path names a store: its prefix, .idx or .bin file."""
    if str(path).endswith((".json", ".npy")):
        return False
    prefix = store_prefix(path)
    return _with_suffix(prefix, ".idx").is_file() and _with_suffix(prefix, ".bin").is_file()


def read_details(prefix: Path) -> dict[str, Any] | None:
    """Return the sidecar of a store; None when there is none (a store that another program made).

    Raises:
        ValueError: damaged, or of another format version.
    """
    path = _with_suffix(prefix, ".json")
    if not path.is_file():
        return None
    try:
        details = json.loads(path.read_text(encoding="utf-8"))
        version = details["format_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: delete it and tokenize the corpus again") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: tokenize again")
    return details


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    """Return (dtype of the ids, lengths int32 [n], byte offsets int64 [n]), mapped."""
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
        raise ValueError(f"{path} is damaged: {path.stat().st_size} bytes, {expected} expected; tokenize again")
    data = np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray)
    lengths = data[HEADER.size : HEADER.size + 4 * num_sequences].view("<i4")
    offsets = data[HEADER.size + 4 * num_sequences : HEADER.size + 12 * num_sequences].view("<i8")
    return np.dtype(TYPE_CODES[code]).newbyteorder("<"), lengths, offsets


def map_array(path: Path, dtype: np.dtype, *, in_memory: bool) -> np.ndarray:
    """Map a flat array file into memory, or read it."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.fromfile(path, dtype) if in_memory else np.memmap(path, mode="r", dtype=dtype).view(np.ndarray)


def _open_array(path: Path, dtype: np.dtype, length: int, *, in_memory: bool) -> np.ndarray:
    """Map or read a flat array file of a known length."""
    size = path.stat().st_size if path.is_file() else -1
    if size != length * dtype.itemsize:
        state = "missing" if size < 0 else f"damaged: {size} bytes, {length * dtype.itemsize} expected"
        raise ValueError(f"{path} is {state}; tokenize the corpus again")
    return map_array(path, dtype, in_memory=in_memory)


def _read_prompts(path: Path, num_documents: int, *, in_memory: bool) -> np.ndarray:
    """Map or read the prompt lengths."""
    try:
        prompts = np.load(path, mmap_mode=None if in_memory else "r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); tokenize the corpus again") from None
    if prompts.shape != (num_documents,):
        raise ValueError(f"{path} is damaged: {prompts.shape} instead of {num_documents} numbers; tokenize again")
    return prompts


# ------------------------------------------------------------------------------------------------------ writing


class StoreWriter:
    """Write a store in parts; memory does not grow with it.

    Everything goes to files with temporary names. ``publish`` gives them their names, the sidecar last: a store with a
    sidecar is whole. One process at a time may write a store (see the lock in ``preparation``).
    """

    def __init__(self, prefix: str | Path, *, dtype: type[np.generic], prompts_inside: bool = False) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.prompts_inside = prompts_inside
        self.num_documents = 0
        self.num_tokens = 0
        self.remove_leftovers(self.prefix)
        names = [".bin", ".lengths", ".prompts", *([".mask.bin"] if prompts_inside else [])]
        self._files: dict[str, BinaryIO] = {name: self._temporary(name).open("wb+") for name in names}

    def _temporary(self, suffix: str) -> Path:
        return _with_suffix(self.prefix, suffix + TEMPORARY)

    @staticmethod
    def remove_leftovers(prefix: Path) -> None:
        """Delete what a killed process left half-written."""
        for path in prefix.parent.glob(f"{prefix.name}.*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def add(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        prompt_lengths: np.ndarray,
        predicted: np.ndarray | None = None,
    ) -> None:
        """Append documents: their ids back to back, lengths [n], prompt lengths [n], and 0/1 per token."""
        assert int(lengths.sum()) == len(tokens) and len(lengths) == len(prompt_lengths)
        assert (predicted is not None) == self.prompts_inside
        self._files[".bin"].write(tokens.astype(self.dtype, copy=False).tobytes())
        self._files[".lengths"].write(lengths.astype("<i4", copy=False).tobytes())
        self._files[".prompts"].write(prompt_lengths.astype("<i4", copy=False).tobytes())
        if predicted is not None:
            self._files[".mask.bin"].write(predicted.astype(np.uint8, copy=False).tobytes())
        self.num_documents += len(lengths)
        self.num_tokens += len(tokens)

    def publish(self, details: dict[str, Any]) -> None:
        """Finish the store; ``details`` goes into its sidecar."""
        self._write_index()
        self._write_prompts()
        details = {
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "prompts_inside": self.prompts_inside,
            **details,
        }
        with self._temporary(".json").open("w", encoding="utf-8") as file:
            json.dump(details, file, ensure_ascii=False, indent=1)
            file.write("\n")
            _flush(file)
        for name in (".bin", ".mask.bin"):
            if name in self._files:
                _flush(self._files[name])
        self._close()
        _with_suffix(self.prefix, ".json").unlink(missing_ok=True)
        for suffix in SUFFIXES:
            if self._temporary(suffix).exists():
                self._temporary(suffix).replace(_with_suffix(self.prefix, suffix))
        self.remove_leftovers(self.prefix)
        folder = os.open(self.prefix.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def discard(self) -> None:
        """Give up and leave nothing behind."""
        self._close()
        self.remove_leftovers(self.prefix)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write_index(self) -> None:
        code = next(code for code, dtype in TYPE_CODES.items() if np.dtype(dtype) == self.dtype.newbyteorder("="))
        count = self.num_documents
        with self._temporary(".idx").open("wb") as file:
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
            _flush(file)

    def _write_prompts(self) -> None:
        header = {"descr": "<i4", "fortran_order": False, "shape": (self.num_documents,)}
        with self._temporary(".prompts.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for lengths in self._numbers(".prompts"):
                file.write(lengths.tobytes())
            _flush(file)

    def _numbers(self, name: str) -> Any:
        """Yield what was written to a list of int32 numbers, in parts."""
        file = self._files[name]
        file.seek(0)
        while data := file.read(4 * COPIED_ITEMS):
            yield np.frombuffer(data, dtype="<i4")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
