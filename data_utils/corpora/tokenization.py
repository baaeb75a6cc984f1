"""Tokenize corpora once into stores on disk, and find them again.

A store belongs to a source, a tokenizer and the way the source is read; it lies in ``.glm_cache`` beside the source, or
below ``GLM_CACHE_DIR`` (default ``~/.cache/glm``) where the source's folder is read-only. It is made again when the
source files have changed. Nothing half-written is ever found: a store counts from the moment its sidecar has its name,
and one process at a time makes it while others wait.

The rows of a corpus are tokenized in numbered chunks, by one process or several: they parse, tokenize and return
arrays, and only a few chunks are under way at a time. So memory does not grow with the corpus, and the result does not
depend on the number of processes. A killed process is followed by one that goes on behind what was written.

Several machines make a shard of a corpus each (``prepare --shard 3/16``), which ``merge`` joins to the same store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from glob import has_magic
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_utils.corpora.duplicates import SeenHashes, first_of, hash_of
from data_utils.corpora.files import Piece, Row, Shard, SourceLostError
from data_utils.corpora.language_detection import DetectorMissingError
from data_utils.corpora.lazy_format import LazyDocuments, is_lazy_folder, lazy_path
from data_utils.corpora.named import (
    NAMED_CORPORA,
    Corpus,
    TextDocument,
    corpus_of_files,
    each_language,
    find_corpus,
    split_weight,
)
from data_utils.corpora.splits import first_two_thirds, scatter
from data_utils.corpora.store import (
    FORMAT_VERSION,
    Documents,
    DocumentSubset,
    IndexedDataset,
    KnownIds,
    StoreWriter,
    TextDocuments,
    concatenate_documents,
    is_store,
    read_details,
)
from files.locks import locked

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger("glm")

CACHE_FOLDER = ".glm_cache"
MALFORMED_LISTED = 20  # in the sidecar
MINIMUM_PARALLEL_BYTES = 4 << 20  # below, starting processes takes longer than tokenizing
LARGEST_UINT16_VOCABULARY = 1 << 16
CHUNK_BYTES = 1 << 20  # of raw rows
CHUNK_ROWS = 2048
CHUNKS_PER_PROCESS = 3  # under way at a time
FILES_WITH_STORES = 100  # given by path, one by one; more of them share one store


@dataclass(frozen=True)
class Preparation:
    """Documents that are tokenized once and kept on disk.

    Attributes:
        tokenizer: makes and reads the ids.
        build_tokenizer: makes the same tokenizer in another process; picklable.
        cache_dir: folder of the stores; None: beside each source.
        text_field, text_unit, commands_in_text: of files given by path; see ``Corpus``.
        num_workers: processes that tokenize (0 and 1 use this one); the result does not depend on it.
        skip_malformed: pass over malformed rows, counted and reported, instead of stopping at the first.
        pre_tokenize: keep ids; otherwise keep text, tokenize on access, and measure lengths in bytes.
        in_memory: read stores into memory instead of mapping them (``--no-lazy-loader``).
        half_of_documents: only the first two thirds of each corpus (``--half-lazy-loader``).
        drop_duplicates: keep only the first of documents with the same text, over all sources.
        num_shards, shard, seed: deal the documents of each corpus out to shards and take one (``--loader-scatter``).
        progress: show a progress bar.
    """

    tokenizer: Tokenizer
    build_tokenizer: Callable[[], Tokenizer]
    cache_dir: str | Path | None = None
    text_field: str = "text"
    text_unit: str = "line"
    commands_in_text: bool = False
    num_workers: int = 0
    skip_malformed: bool = False
    pre_tokenize: bool = True
    in_memory: bool = False
    half_of_documents: bool = False
    drop_duplicates: bool = False
    num_shards: int | None = None
    shard: int = 0
    seed: int = 1234
    progress: bool = True

    def documents(self, sources: Sequence[str]) -> Documents:
        """Return the documents of ``--train-data``, in its order.

        It has names, ``name=path``, files, folders, globs, ``hf:`` data sets and stores.

        Raises:
            ValueError: unknown name, missing or empty files, a malformed row, a store of another tokenizer; one line.
        """
        return concatenate_documents([documents for _, documents in self.corpora(sources)])

    def corpora(self, sources: Sequence[str]) -> list[tuple[str, Documents]]:
        """Return what ``documents`` does corpus by corpus, each with its name; ``multilingual`` is one per language."""
        corpora = self._find(sources)
        sources = [source for source, _ in corpora]
        parts = [self._open_store(source) if corpus is None else self._open(corpus) for source, corpus in corpora]
        for source, part in zip(sources, parts, strict=True):
            if not len(part):
                raise ValueError(f"{source} holds no document")
        made_elsewhere = any(corpus is None or _lazy_folder(corpus.location) for _, corpus in corpora)
        if self.drop_duplicates and (len(parts) > 1 or made_elsewhere):
            parts = self._each_once(sources, parts)
        if self.num_shards is not None:
            parts = scatter(parts, num_shards=self.num_shards, shard=self.shard, seed=self.seed)
        if self.half_of_documents:
            parts = [first_two_thirds(part) for part in parts]
        return list(zip(sources, parts, strict=True))

    def _find(self, sources: Sequence[str]) -> list[tuple[str, Corpus | None]]:
        """Return the corpus of every argument, with its name; None for a store.

        Weights are passed over. A store for each of very many files would take its time and keep files open: such files
        share one.
        """
        sources = [one for source in sources for one in each_language(split_weight(source)[0])]
        many = sum(_is_any_file(source) for source in sources) > FILES_WITH_STORES
        found: list[tuple[str, Corpus | None]] = []
        for joined, group in groupby(sources, key=lambda source: many and _is_any_file(source)):
            names = list(group)
            corpora: list[Corpus | None]
            if joined:
                whole = corpus_of_files(names)
                logger.info(f"{whole.name} are kept in one store")
                names, corpora = [whole.name], [whole]
            else:
                corpora = [None if is_store(source) else find_corpus(source) for source in names]
            for source, corpus in zip(names, corpora, strict=True):
                found.append((source, corpus and replace(corpus, **self._reading)))
        return found

    @property
    def _reading(self) -> dict[str, Any]:
        return {
            "text_field": self.text_field,
            "text_unit": self.text_unit,
            "commands_in_text": self.commands_in_text,
        }

    def _each_once(self, sources: Sequence[str], parts: Sequence[Documents]) -> list[Documents]:
        """Leave out the documents that an earlier source holds, too."""
        kept: list[Documents] = []
        roomy = self.cache_dir if self.cache_dir and os.access(self.cache_dir, os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=roomy) as folder:
            seen = SeenHashes(folder)
            for source, part in zip(sources, parts, strict=True):
                store = part.texts if isinstance(part, TextDocuments) else part
                if not isinstance(store, IndexedDataset):
                    raise ValueError(
                        f"--drop-duplicates: nothing tells the duplicates of {source}; give its text files"
                    )
                first = first_of(store.hashes(), seen)
                if first.all():
                    kept.append(part)
                    continue
                dropped = len(part) - int(first.sum())
                logger.info(f"{source}: {dropped} of {len(part)} documents are left out, earlier sources hold them")
                if dropped == len(part):
                    raise ValueError(f"{source} holds no document that earlier sources do not hold; leave it out")
                kept.append(DocumentSubset(part, np.flatnonzero(first)))
        return kept

    def _open(self, corpus: Corpus) -> Documents:
        """Return the documents of a corpus, tokenized now or before."""
        source = corpus.name
        lazy = _lazy_folder(corpus.location)
        if lazy is not None:
            logger.info(f"{source}: reading the original's cache {lazy}, which does not say which tokenizer made it")
            cache = LazyDocuments(lazy, in_memory=self.in_memory)
            if not cache.is_text:
                return KnownIds(cache, self.num_ids, name=f"the cache {lazy}")
            return TextDocuments(cache, encode=self.tokenizer.encode, prepare=corpus.for_tokens)
        if corpus.kind.has_prompts_inside and not self.pre_tokenize:
            raise ValueError(f"corpus {source!r} has prompts inside of documents: it needs to be tokenized in advance")
        prefix = self.find_or_build(corpus)
        if self.pre_tokenize:
            return IndexedDataset(prefix, self.tokenizer.fingerprint, in_memory=self.in_memory, is_checked=True)
        texts = IndexedDataset(prefix, in_memory=self.in_memory, is_checked=True)
        encode = partial(self.tokenizer.encode, as_text=not corpus.has_commands)
        return TextDocuments(texts, encode=encode, prepare=corpus.for_tokens)

    def _open_store(self, source: str) -> Documents:
        """Open a store that the user named."""
        store = IndexedDataset(source, in_memory=self.in_memory)
        if store.details is None:
            logger.info(
                f"{source}: no sidecar (.json) tells which tokenizer made these ids; only their range is checked"
            )
            end = self.tokenizer.command_id("eos")
            return KnownIds(store, self.num_ids, name=f"the store {source}", end=end)
        if store.details["kind"] == "text":
            as_text = store.details["commands_in_text"] is False and not self.commands_in_text
            return TextDocuments(store, encode=partial(self.tokenizer.encode, as_text=as_text))
        return IndexedDataset(source, self.tokenizer.fingerprint, in_memory=self.in_memory, is_checked=True)

    @property
    def num_ids(self) -> int:
        """Return how many ids the tokenizer may give."""
        return max([self.tokenizer.num_tokens, *(token.id + 1 for token in self.tokenizer.command_tokens)])

    def make_shard(self, sources: Sequence[str], shard: Shard) -> list[Path]:
        """Make the stores of one shard of every corpus, for ``merge``; return their prefixes.

        Raises:
            ValueError: as ``documents``; a store among the sources.
        """
        found = self._find(sources)
        for source, corpus in found:
            if corpus is None:
                raise ValueError(f"{source} is a store; --shard makes stores of text")
        return [self.find_or_build(corpus, shard) for _, corpus in found if corpus is not None]

    def find_or_build(self, corpus: Corpus, shard: Shard | None = None) -> Path:
        """Return the prefix of an up-to-date and intact store of a corpus, or of a shard; make it where there is none.

        Where the whole corpus has a store, a shard is not made.
        """
        whole = store_places(
            corpus,
            cache_dir=self.cache_dir,
            fingerprint=self.tokenizer.fingerprint if self.pre_tokenize else None,
            drop_duplicates=self.drop_duplicates,
        )
        places = whole if shard is None else [shard_prefix(prefix, shard) for prefix in whole]
        try:
            files = corpus.files()
        except ValueError:
            files = None
        if not files and not (corpus.data_set and not corpus.data_set.is_local):
            for prefix in whole:
                if read_details(prefix) is not None:  # the raw files are not needed any more
                    return self._checked(IndexedDataset(prefix))
            files = corpus.files()  # says what is missing
        files = files or []
        for prefix in dict.fromkeys([*whole, *places]):
            if store := self._current_store(prefix, files, corpus, say=logger.debug):
                return self._checked(store)
        prefix = first_writable(places)
        lock = prefix.with_name(prefix.name + ".lock")
        with locked(lock, waiting=lambda holder: logger.info(f"waiting for {holder}, which makes {prefix}")):
            store = self._current_store(prefix, files, corpus, say=logger.warning)
            if store is None:
                self._build(corpus, files, prefix, shard)
                store = IndexedDataset(prefix, is_checked=True)
        return self._checked(store)

    def _current_store(
        self, prefix: Path, files: Sequence[Path], corpus: Corpus, *, say: Callable[[str], None]
    ) -> IndexedDataset | None:
        """Return the store of these very files where there is a whole and intact one; ``say`` why it cannot be used."""
        try:
            details = read_details(prefix)
            if details is None or details["sources"] != _source_list(prefix, files, corpus):
                return None
            store = IndexedDataset(prefix)
        except ValueError as error:  # damaged, or of another version
            say(f"{error}: it is made again")
            return None
        if details["kind"] == "tokens" and not corpus.has_commands and details["commands_in_text"] is not False:
            # An earlier version made it, for which command texts were commands in any text.
            commands = {token.id for token in self.tokenizer.command_tokens if token.name != "unk"}
            if any((part == command).any() for part in store.parts() for command in commands):
                say(f"{prefix}: command tokens in its texts are commands, not text: it is made again")
                return None
        return store

    def _checked(self, store: IndexedDataset) -> Path:
        """Refuse a store with malformed rows or the rest of a file left out unless they may be."""
        assert store.details is not None
        malformed, cut = store.details["malformed"]["first"], store.details["cut"] or []
        if (malformed or cut) and not self.skip_malformed:
            raise ValueError(_stop_line(malformed, cut))
        for line in cut:
            logger.warning(f"{line}: the store {store.prefix} lacks it")
        return store.prefix

    def _build(self, corpus: Corpus, files: Sequence[Path], prefix: Path, shard: Shard | None = None) -> None:
        """Tokenize a corpus, or a shard of it, into a store; go on where a killed process was."""
        dtype: type[np.generic] = np.uint8
        if self.pre_tokenize:
            dtype = np.uint16 if self.tokenizer.num_tokens <= LARGEST_UINT16_VOCABULARY else np.int32
        sources = _source_list(prefix, files, corpus)
        name = corpus.name if shard is None else f"{corpus.name}, shard {shard}"
        writer = StoreWriter(
            prefix,
            dtype=dtype,
            prompts_inside=corpus.kind.has_prompts_inside,
            with_hashes=self.drop_duplicates,
            key={"format_version": FORMAT_VERSION, "sources": sources, "skip_malformed": self.skip_malformed},
        )
        done = Tally(**writer.saved) if writer.saved else Tally()
        if writer.saved:
            logger.info(f"{name}: going on behind row {done.rows}, where an earlier process ended")
        try:
            pieces = corpus.pieces(files, shard)
            first_row = corpus.rows_before(files, shard) if shard else 0
            self._read_into(writer, done, corpus, pieces, first_row=first_row, dtype=dtype)
            if writer.num_tokens == 0 and shard is None:
                raise ValueError(empty_line(corpus.name, asdict(done), len(files), writer.num_documents))
            writer.publish(
                {
                    "kind": "tokens" if self.pre_tokenize else "text",
                    "tokenizer_fingerprint": self.tokenizer.fingerprint if self.pre_tokenize else None,
                    "corpus": corpus.name,
                    "sources": sources,
                    **done.details(),
                    "commands_in_text": corpus.has_commands,
                    **({"duplicates": done.duplicates} if self.drop_duplicates else {}),
                    **({"shard": str(shard)} if shard is not None else {}),
                }
            )
        except DetectorMissingError as error:
            writer.discard()
            raise ValueError(f"corpus {corpus.name}: {error}") from None
        except SourceLostError:  # may pass: the next one goes on
            if done.rows:
                writer.close()
            else:
                writer.discard()
            raise
        except Exception:
            writer.discard()
            raise
        except BaseException:  # interrupted: the next one goes on
            writer.close()
            raise
        what = "tokens" if self.pre_tokenize else "bytes of text"
        logger.info(f"{name}: {writer.num_documents} documents, {writer.num_tokens} {what} -> {prefix}")
        if self.drop_duplicates:
            count = writer.num_documents + done.duplicates
            logger.info(f"{name}: dropped {done.duplicates} of {count} documents, duplicates of earlier ones")
        done.report(name, what, corpus)

    def _read_into(
        self,
        writer: StoreWriter,
        done: Tally,
        corpus: Corpus,
        pieces: Sequence[Piece],
        *,
        first_row: int,
        dtype: type[np.generic],
    ) -> None:
        """Tokenize the rows behind ``done`` into a store, and count them there; keep the first of equal documents."""
        total = sum(piece.size for piece in pieces)
        parallel = self.num_workers if total >= MINIMUM_PARALLEL_BYTES or corpus.data_set else 0
        build = self.build_tokenizer if parallel > 1 else lambda: self.tokenizer
        chunk_tokenizer = ChunkTokenizer(
            corpus, dtype, build, keep_text=not self.pre_tokenize, with_hashes=self.drop_duplicates
        )
        chunks = tokenize_chunks(
            read_chunks(corpus, pieces, Place(*done.place), first_row=first_row), chunk_tokenizer, num_workers=parallel
        )
        seen = SeenHashes(writer.prefix.parent)
        for hashes in writer.written_hashes():
            seen.first(hashes)
        with contextlib.closing(chunks), self._progress_bar(corpus.name, total) as advance:
            for chunk in chunks:
                self._check(chunk)
                done.count(chunk)
                kept = chunk
                if chunk.hashes is not None:
                    first = seen.first(chunk.hashes)
                    done.duplicates += len(first) - int(first.sum())
                    kept = chunk if first.all() else chunk.only(first)
                writer.add(kept.tokens, kept.lengths, kept.prompt_lengths, kept.predicted, kept.hashes)
                writer.save(asdict(done))
                advance(chunk.position)

    def _check(self, chunk: TokenizedChunk) -> None:
        """Stop at malformed rows and lost rests, and where a process has another tokenizer than this one."""
        if (chunk.malformed or chunk.cut) and not self.skip_malformed:
            raise ValueError(_stop_line(chunk.malformed, chunk.cut))
        if self.pre_tokenize and chunk.fingerprint != self.tokenizer.fingerprint:
            raise ValueError(
                f"the tokenizing processes use another tokenizer ({chunk.fingerprint}) than this one "
                f"({self.tokenizer.fingerprint}): its files have changed, or its settings differ"
            )

    @contextlib.contextmanager
    def _progress_bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function that takes the number of bytes read so far."""
        from tqdm import tqdm

        with tqdm(
            total=total, desc=f"tokenize {name}"[:40], unit="B", unit_scale=True, disable=not self.progress, leave=False
        ) as bar:
            yield lambda position: bar.update(max(0, min(position, total) - bar.n))


def empty_line(name: str, done: Mapping[str, Any], num_files: int, num_documents: int) -> str:
    """Return what to say of a corpus that gave no token; ``done`` is a ``Tally``."""
    lost = [*done["cut"], *done["first_malformed"]]
    reason = f"; the first: {lost[0]}" if lost else ""
    return (
        f"corpus {name} is empty: {done['rows']} rows ({done['malformed']} malformed) of {num_files} files gave "
        f"{num_documents} documents without any text{reason}"
    )


def _stop_line(malformed: Sequence[str], cut: Sequence[str]) -> str:
    """Return what to say of the first malformed row, or else of the first file whose rest is lost."""
    if malformed:
        return f"{malformed[0]} (--skip-malformed counts such rows and leaves them out)"
    return f"{cut[0]}: get the file again, or do without its rest with --skip-malformed"


# ------------------------------------------------------------------------------------------------------ chunks


class Place(NamedTuple):
    """How far a corpus was read: rows of piece ``piece`` that were, those of the corpus, and bytes."""

    piece: int = 0
    row: int = 0
    rows: int = 0
    position: int = 0


BEGINNING = Place()


@dataclass(frozen=True)
class Chunk:
    """Rows that are tokenized together: the first one's number in the corpus, and the place behind them."""

    first_row: int
    rows: list[Row]
    place: Place

    @property
    def position(self) -> int:
        """Return the bytes of the files that were read so far."""
        return self.place.position


@dataclass(frozen=True)
class TokenizedChunk:
    """The documents of one chunk.

    Attributes:
        tokens: ids of all documents, back to back.
        lengths: tokens per document, int32 [n].
        prompt_lengths: tokens in front of each document that are not predicted, int32 [n].
        predicted: 1 = predicted, uint8 per token; None unless the corpus has prompts inside of documents.
        num_rows: rows read, malformed ones included.
        malformed: one line for each malformed row, with file and line.
        cut: one line for each file that cannot be read to its end.
        group_tokens: tokens per part of the corpus.
        command_texts: how often command texts occur in the text.
        lone_returns: rows of text with a carriage return that ends no line.
        place: how far the corpus was read.
        fingerprint: of the tokenizer that made the ids.
        hashes: of the documents' texts, uint64 [n]; None where nobody asked.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    predicted: np.ndarray | None
    num_rows: int
    malformed: list[str]
    cut: list[str]
    group_tokens: Mapping[str, int]
    command_texts: Mapping[str, int]
    lone_returns: int
    place: Place
    fingerprint: str | None
    hashes: np.ndarray | None = None

    @property
    def position(self) -> int:
        """Return the bytes of the files that were read so far."""
        return self.place.position

    def only(self, chosen: np.ndarray) -> TokenizedChunk:
        """Return the chunk with some of its documents, bool [n]; what was counted in it stays."""
        tokens = np.repeat(chosen, self.lengths)
        return replace(
            self,
            tokens=self.tokens[tokens],
            lengths=self.lengths[chosen],
            prompt_lengths=self.prompt_lengths[chosen],
            predicted=None if self.predicted is None else self.predicted[tokens],
            hashes=None if self.hashes is None else self.hashes[chosen],
        )


@dataclass
class Tally:
    """What was counted in the rows so far; it can be written as JSON."""

    place: Sequence[int] = BEGINNING
    rows: int = 0
    malformed: int = 0
    duplicates: int = 0
    lone_returns: int = 0
    first_malformed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    commands: dict[str, int] = field(default_factory=dict)

    def count(self, chunk: TokenizedChunk) -> None:
        """Add the next chunk."""
        self.place = chunk.place
        self.rows += chunk.num_rows
        self.malformed += len(chunk.malformed)
        self.lone_returns += chunk.lone_returns
        self.first_malformed += chunk.malformed[: MALFORMED_LISTED - len(self.first_malformed)]
        self.cut += chunk.cut
        add_counts(self.groups, chunk.group_tokens)
        add_counts(self.commands, chunk.command_texts)

    def details(self) -> dict[str, Any]:
        """Return what the description of a store says of it."""
        return {
            "rows": self.rows,
            "malformed": {"count": self.malformed, "first": self.first_malformed},
            "cut": self.cut,
            "tokens_by_group": self.groups,
            "command_texts": dict(sorted(self.commands.items())),
        }

    def report(self, name: str, what: str, corpus: Corpus) -> None:
        """Say what was left out, and what looks odd; ``what`` is counted in groups."""
        if self.malformed:
            logger.info(f"{name}: skipped {self.malformed} malformed rows; the first: {self.first_malformed[0]}")
        for group, count in sorted(self.groups.items()):
            logger.info(f"{name}: {group}: {count} {what}")
        if self.commands:
            counts = ", ".join(f"{text} {count}" for text, count in sorted(self.commands.items()))
            meaning = (
                "they are commands in it, as in the original"
                if corpus.named
                else "they are commands in it (--commands-in-text)"
                if corpus.has_commands
                else "they are kept as plain text; --commands-in-text makes commands of them"
            )
            logger.warning(f"{name}: its text holds command tokens: {counts}; {meaning}")
        if self.lone_returns:
            logger.warning(
                f"{name}: {self.lone_returns} rows hold carriage returns that end no line (a line ends with a line "
                "feed): if they are line ends, convert the files first: tr '\\r' '\\n' < OLD > NEW"
            )


def add_counts(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add to counts by name."""
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


def read_chunks(
    corpus: Corpus, pieces: Sequence[Piece], place: Place = BEGINNING, *, first_row: int = 0
) -> Iterator[Chunk]:
    """Yield the rows of a corpus behind ``place`` in chunks of about a megabyte.

    ``first_row`` is the number that the first row of the pieces has in the whole corpus.
    """
    rows: list[Row] = []
    size, read, taken = 0, place.rows, place.row
    before = sum(piece.size for piece in pieces[: place.piece])
    for number, piece in enumerate(pieces[place.piece :], start=place.piece):
        skipped = taken if number == place.piece else 0
        taken = skipped
        for row in islice(corpus.rows(piece), skipped, None):
            rows.append(row)
            taken += 1
            size += _size(row.value)
            if size >= CHUNK_BYTES or len(rows) == CHUNK_ROWS:
                read += len(rows)
                yield Chunk(first_row + read - len(rows), rows, Place(number, taken, read, before + row.position))
                rows, size = [], 0
        before += piece.size
    if rows:
        read += len(rows)
        yield Chunk(first_row + read - len(rows), rows, Place(len(pieces), 0, read, before))


def _size(value: Any) -> int:
    """Return about how many bytes a row takes."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(item) if isinstance(item, str) else 100 for item in value.values())
    return 100


@dataclass
class ChunkTokenizer:
    """Turn chunks of rows into arrays of ids, or of UTF-8 bytes.

    Attributes:
        corpus: how rows become documents.
        dtype: of the ids.
        build_tokenizer: makes the tokenizer when the first chunk comes; has to be picklable for use in other processes.
        keep_text: keep text as UTF-8 bytes; the tokenizer only counts command texts.
        with_hashes: tell equal documents.
    """

    corpus: Corpus
    dtype: type[np.generic]
    build_tokenizer: Callable[[], Tokenizer]
    keep_text: bool = False
    with_hashes: bool = False
    _tokenizer: Tokenizer | None = field(default=None, init=False, repr=False)

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        """Parse and tokenize one chunk."""
        documents: list[TextDocument] = []
        malformed: list[str] = []
        cut: list[str] = []
        lone_returns = 0
        for number, row in enumerate(chunk.rows, start=chunk.first_row):
            try:
                documents += self.corpus.parse(row, number)
            except ValueError as error:
                (cut if row.rest_lost else malformed).append(str(error))
            if row.is_text and b"\r" in row.value and _LONE_RETURN.search(row.value):
                lone_returns += 1
        if self._tokenizer is None:
            self._tokenizer = self.build_tokenizer()
        texts = [piece for document in documents for piece in document.pieces if piece]
        encoded = iter(self._encode(self._tokenizer, texts))
        eop = [] if self.keep_text else [self._tokenizer.command_id("eop")]
        parts: list[Sequence[int]] = []
        lengths, prompt_lengths = np.zeros((2, len(documents)), dtype=np.int32)
        groups: Counter[str] = Counter()
        runs: list[int] = []
        for index, document in enumerate(documents):
            pieces = [next(encoded) if piece else [] for piece in document.pieces]
            if document.closed_by_eop:
                pieces = [piece if i % 2 == 0 else [*piece, *eop] for i, piece in enumerate(pieces)]
            runs += map(len, pieces)
            lengths[index] = sum(map(len, pieces))
            prompt_lengths[index] = len(pieces[0])
            groups[document.group] += int(lengths[index])
            parts += pieces
        tokens = np.fromiter(chain.from_iterable(parts), dtype=self.dtype, count=int(lengths.sum()))
        return TokenizedChunk(
            tokens=tokens,
            lengths=lengths,
            prompt_lengths=prompt_lengths,
            predicted=_alternate(runs) if self.corpus.kind.has_prompts_inside else None,
            num_rows=len(chunk.rows) - len(cut),
            malformed=malformed,
            cut=cut,
            group_tokens={group: count for group, count in groups.items() if group},
            command_texts=self._tokenizer.count_commands(texts),
            lone_returns=lone_returns,
            place=chunk.place,
            fingerprint=None if self.keep_text else self._tokenizer.fingerprint,
            hashes=np.array([hash_of(d.pieces) for d in documents], np.uint64) if self.with_hashes else None,
        )

    def _encode(self, tokenizer: Tokenizer, texts: list[str]) -> Sequence[Sequence[int]]:
        if self.keep_text:
            return [text.encode("utf-8") for text in texts]
        plain = [self.corpus.for_tokens(text) for text in texts]
        return tokenizer.encode_batch(plain, as_text=not self.corpus.has_commands) if texts else []


_LONE_RETURN = re.compile(rb"\r(?!\n)")


def _alternate(runs: Sequence[int]) -> np.ndarray:
    """Return runs of zeros and ones in turn, uint8; every document has an even number of runs."""
    return np.repeat(np.arange(len(runs), dtype=np.int64) % 2, runs).astype(np.uint8)


_chunk_tokenizer: ChunkTokenizer | None = None  # of this worker process


def _start_worker(chunk_tokenizer: ChunkTokenizer) -> None:
    global _chunk_tokenizer  # noqa: PLW0603 - a worker process serves one corpus
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process
    _chunk_tokenizer = chunk_tokenizer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker process when the one that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> TokenizedChunk:
    assert _chunk_tokenizer is not None
    return _chunk_tokenizer(chunk)


def tokenize_chunks(
    chunks: Iterable[Chunk], chunk_tokenizer: ChunkTokenizer, *, num_workers: int
) -> Generator[TokenizedChunk, None, None]:
    """Yield the chunks tokenized, in order.

    Args:
        chunks: of the corpus.
        chunk_tokenizer: what to do with them.
        num_workers: processes; 0 and 1 work in this one.

    Raises:
        SourceLostError: a process died.
    """
    if num_workers <= 1:
        yield from map(chunk_tokenizer, chunks)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(chunk_tokenizer,),
    )
    under_way: deque[Future[TokenizedChunk]] = deque()
    try:
        for chunk in chunks:
            under_way.append(pool.submit(_work, chunk))
            if len(under_way) == CHUNKS_PER_PROCESS * num_workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise SourceLostError("a tokenizing process died (out of memory?): run again, with fewer processes") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------------------------ places


def store_places(
    corpus: Corpus, *, cache_dir: str | Path | None, fingerprint: str | None, drop_duplicates: bool = False
) -> list[Path]:
    """List the prefixes under which the store of a corpus may lie, the preferred one first.

    The name holds a hash of everything that changes what is in the store. Beside the source it does not depend on where
    the source lies, so that a folder can be moved with its stores.
    """
    beside = _folder_of(corpus.location)
    key: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "named": corpus.named,
        "text_field": None if corpus.named else corpus.text_field,
        "text_unit": None if corpus.named else corpus.text_unit,
        "keep_line_ends": False,  # an option of earlier versions: the stores they made keep their names
    }
    if corpus.commands_in_text and not corpus.named:
        key["commands_in_text"] = True
    key |= {} if corpus.language is None else {"language": corpus.language}
    if drop_duplicates:
        key["drop_duplicates"] = True
    data_set = corpus.data_set
    if data_set is not None:
        key["data_set"] = [data_set.configuration, data_set.split]
    stem = re.sub(r"[^\w.-]+", "_", Path(corpus.location).name).strip("_") or "all"
    is_hub = data_set is not None and not data_set.is_local
    absolute = corpus.location if is_hub else os.path.abspath(corpus.location)

    def place(folder: Path, location: str) -> Path:
        if corpus.paths:
            key["paths"] = [os.path.relpath(path, corpus.location) for path in corpus.paths]
        text = json.dumps({**key, "location": location}, sort_keys=True)
        return folder / f"{stem}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:10]}"

    if cache_dir is not None:
        return [place(Path(cache_dir), absolute)]
    first, fallback = cache_folders(beside)
    if is_hub:
        return [place(fallback, absolute)]
    return [place(first, os.path.relpath(corpus.location, beside)), place(fallback, absolute)]


def cache_folders(beside: Path) -> list[Path]:
    """List the folders where stores of what lies in ``beside`` may lie, the preferred one first."""
    user = os.environ.get("GLM_CACHE_DIR")
    return [beside / CACHE_FOLDER, Path(user) if user else Path.home() / ".cache" / "glm"]


def _folder_of(location: str) -> Path:
    """Return the folder that holds a file or folder, or the last one of a glob without wild cards."""
    path = Path(location)
    while has_magic(str(path)):
        path = path.parent
        if not has_magic(str(path)):
            return path
    return path.absolute().parent


def shard_prefix(prefix: Path, shard: Shard) -> Path:
    """Return the prefix of the store of a shard; no pattern of the whole store's files fits it."""
    return prefix.with_name(f"{prefix.name}-shard-{shard.number:05d}-of-{shard.count:05d}")


def _source_list(prefix: Path, files: Sequence[Path], corpus: Corpus) -> list[dict[str, Any]]:
    """Describe the source files as they are now; their paths are relative to the store's folder.

    A data set of the hub is only named: who wants a newer one deletes the store.
    """
    if not files and corpus.data_set is not None:
        return [{"data_set": str(corpus.data_set)}]
    found = []
    for path in files:
        state = path.stat()
        name = os.path.relpath(path, prefix.parent)
        found.append({"file": name, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return found


def _is_any_file(source: str) -> bool:
    """Tell whether an argument is a file by path, of no named corpus, and no store."""
    return source not in NAMED_CORPORA and not is_store(source) and os.path.isfile(source)


def first_writable(places: Sequence[Path]) -> Path:
    """Return the first place whose folder can be written, made where it is missing.

    Raises:
        ValueError: none can.
    """
    for prefix in places:
        folder = prefix.parent
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        # A folder without any write bit is meant to be left alone, even by a user who could write all the same.
        if existing.stat().st_mode & 0o222 and os.access(existing, os.W_OK):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                return prefix
    tried = ", ".join(str(prefix.parent) for prefix in places)
    raise ValueError(f"no folder for the tokenized store can be written (tried {tried}): name one with GLM_CACHE_DIR")


def _lazy_folder(location: str) -> Path | None:
    """Return the original's cache of a source where it was named, or where the source itself is gone."""
    if is_lazy_folder(location):
        return Path(location)
    if has_magic(location) or Path(location).exists():
        return None
    folder = Path(lazy_path(location))
    return folder if is_lazy_folder(folder) else None
