"""Tokenize corpora once into stores on disk, and find them again.

A store belongs to a source, a tokenizer and the way the source is read; it lies in ``.glm_cache`` beside the source, or
below ``GLM_CACHE_DIR`` (default ``~/.cache/glm``) where the source's folder is read-only. It is made again when the
source files have changed. Nothing half-written is ever found: a store counts from the moment its sidecar has its name,
and one process at a time makes it while others wait.

The rows of a corpus are tokenized in numbered chunks, by one process or several: they parse, tokenize and return
arrays, and only a few chunks are under way at a time. So memory does not grow with the corpus, and the result does not
depend on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.corpora.files import Row
from data_utils.corpora.language_detection import DetectorMissingError
from data_utils.corpora.lazy_format import LazyDocuments, is_lazy_folder, lazy_path
from data_utils.corpora.named import Corpus, TextDocument, each_language, find_corpus
from data_utils.corpora.splits import first_two_thirds, scatter
from data_utils.corpora.store import (
    FORMAT_VERSION,
    Documents,
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
    num_shards: int | None = None
    shard: int = 0
    seed: int = 1234
    progress: bool = True

    def documents(self, sources: Sequence[str]) -> Documents:
        """Return the documents of ``--train-data``: names, ``name=path``, files, folders, globs, stores, in this order.

        Raises:
            ValueError: unknown name, missing or empty files, a malformed row, a store of another tokenizer; one line.
        """
        return concatenate_documents([documents for _, documents in self.corpora(sources)])

    def corpora(self, sources: Sequence[str]) -> list[tuple[str, Documents]]:
        """Return what ``documents`` does corpus by corpus, each with its name; ``multilingual`` is one per language."""
        sources = [one for source in sources for one in each_language(source)]
        parts = [self._open_source(source) for source in sources]
        for source, part in zip(sources, parts, strict=True):
            if not len(part):
                raise ValueError(f"{source} holds no document")
        if self.num_shards is not None:
            parts = scatter(parts, num_shards=self.num_shards, shard=self.shard, seed=self.seed)
        if self.half_of_documents:
            parts = [first_two_thirds(part) for part in parts]
        return list(zip(sources, parts, strict=True))

    def _open_source(self, source: str) -> Documents:
        """Return the documents of one argument."""
        if is_store(source):
            return self._open_store(source)
        corpus = find_corpus(
            source, text_field=self.text_field, text_unit=self.text_unit, commands_in_text=self.commands_in_text
        )
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

    def find_or_build(self, corpus: Corpus) -> Path:
        """Return the prefix of an up-to-date and intact store of a corpus; make it where there is none."""
        places = store_places(
            corpus,
            cache_dir=self.cache_dir,
            fingerprint=self.tokenizer.fingerprint if self.pre_tokenize else None,
        )
        try:
            files = corpus.files()
        except ValueError:
            for prefix in places:
                if read_details(prefix) is not None:  # the raw files are not needed any more
                    return self._checked(IndexedDataset(prefix))
            raise
        for prefix in places:
            if store := self._current_store(prefix, files, corpus, say=logger.debug):
                return self._checked(store)
        prefix = first_writable(places)
        lock = prefix.with_name(prefix.name + ".lock")
        with locked(lock, waiting=lambda holder: logger.info(f"waiting for {holder}, which makes {prefix}")):
            store = self._current_store(prefix, files, corpus, say=logger.warning)
            if store is None:
                self._build(corpus, files, prefix)
                store = IndexedDataset(prefix, is_checked=True)
        return self._checked(store)

    def _current_store(
        self, prefix: Path, files: Sequence[Path], corpus: Corpus, *, say: Callable[[str], None]
    ) -> IndexedDataset | None:
        """Return the store of these very files where there is a whole and intact one; ``say`` why it cannot be used."""
        try:
            details = read_details(prefix)
            if details is None or details["sources"] != _source_list(prefix, files):
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

    def _build(self, corpus: Corpus, files: Sequence[Path], prefix: Path) -> None:
        """Tokenize a corpus into a store."""
        total = sum(path.stat().st_size for path in files)
        parallel = self.num_workers if total >= MINIMUM_PARALLEL_BYTES else 0
        dtype: type[np.generic] = np.uint8
        if self.pre_tokenize:
            dtype = np.uint16 if self.tokenizer.num_tokens <= LARGEST_UINT16_VOCABULARY else np.int32
        build = self.build_tokenizer if parallel > 1 else lambda: self.tokenizer
        chunk_tokenizer = ChunkTokenizer(corpus, dtype, build, keep_text=not self.pre_tokenize)
        sources = _source_list(prefix, files)
        writer = StoreWriter(prefix, dtype=chunk_tokenizer.dtype, prompts_inside=corpus.kind.has_prompts_inside)
        num_rows, num_malformed, lone_returns = 0, 0, 0
        groups, commands = Counter[str](), Counter[str]()
        first_malformed: list[str] = []
        cut: list[str] = []
        try:
            chunks = tokenize_chunks(read_chunks(corpus, files), chunk_tokenizer, num_workers=parallel)
            with contextlib.closing(chunks), self._progress_bar(corpus.name, total) as advance:
                for chunk in chunks:
                    self._check(chunk)
                    writer.add(chunk.tokens, chunk.lengths, chunk.prompt_lengths, chunk.predicted)
                    num_rows += chunk.num_rows
                    num_malformed += len(chunk.malformed)
                    first_malformed += chunk.malformed[: MALFORMED_LISTED - len(first_malformed)]
                    cut += chunk.cut
                    groups.update(chunk.group_tokens)
                    commands.update(chunk.command_texts)
                    lone_returns += chunk.lone_returns
                    advance(chunk.position)
            if writer.num_tokens == 0:
                reason = f"; the first: {[*cut, *first_malformed][0]}" if cut or first_malformed else ""
                raise ValueError(
                    f"corpus {corpus.name} is empty: {num_rows} rows ({num_malformed} malformed) of {len(files)} "
                    f"files gave {writer.num_documents} documents without any text{reason}"
                )
            writer.publish(
                {
                    "kind": "tokens" if self.pre_tokenize else "text",
                    "tokenizer_fingerprint": self.tokenizer.fingerprint if self.pre_tokenize else None,
                    "corpus": corpus.name,
                    "sources": sources,
                    "rows": num_rows,
                    "malformed": {"count": num_malformed, "first": first_malformed},
                    "cut": cut,
                    "tokens_by_group": dict(groups),
                    "commands_in_text": corpus.has_commands,
                    "command_texts": dict(sorted(commands.items())),
                }
            )
        except DetectorMissingError as error:
            writer.discard()
            raise ValueError(f"corpus {corpus.name}: {error}") from None
        except BaseException:
            writer.discard()
            raise
        what = "tokens" if self.pre_tokenize else "bytes of text"
        logger.info(f"{corpus.name}: {writer.num_documents} documents, {writer.num_tokens} {what} -> {prefix}")
        if num_malformed:
            logger.info(f"{corpus.name}: skipped {num_malformed} malformed rows; the first: {first_malformed[0]}")
        for group, count in sorted(groups.items()):
            logger.info(f"{corpus.name}: {group}: {count} {what}")
        if commands:
            counts = ", ".join(f"{text} {count}" for text, count in sorted(commands.items()))
            meaning = (
                "they are commands in it, as in the original"
                if corpus.named
                else "they are commands in it (--commands-in-text)"
                if corpus.has_commands
                else "they are kept as plain text; --commands-in-text makes commands of them"
            )
            logger.warning(f"{corpus.name}: its text holds command tokens: {counts}; {meaning}")
        if lone_returns:
            logger.warning(
                f"{corpus.name}: {lone_returns} rows hold carriage returns that end no line (a line ends with a line "
                "feed): if they are line ends, convert the files first: tr '\\r' '\\n' < OLD > NEW"
            )

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


def _stop_line(malformed: Sequence[str], cut: Sequence[str]) -> str:
    """Return what to say of the first malformed row, or else of the first file whose rest is lost."""
    if malformed:
        return f"{malformed[0]} (--skip-malformed counts such rows and leaves them out)"
    return f"{cut[0]}: get the file again, or do without its rest with --skip-malformed"


# ------------------------------------------------------------------------------------------------------ chunks


@dataclass(frozen=True)
class Chunk:
    """Rows that are tokenized together: the first one's number in the corpus, and how far the files were read."""

    first_row: int
    rows: list[Row]
    position: int


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
        position: bytes of the files read so far.
        fingerprint: of the tokenizer that made the ids.
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
    position: int
    fingerprint: str | None


def read_chunks(corpus: Corpus, files: Sequence[Path]) -> Iterator[Chunk]:
    """Yield the rows of a corpus in chunks of about a megabyte."""
    rows: list[Row] = []
    first, size, read = 0, 0, 0
    for path in files:
        position = 0
        for row in corpus.rows(path):
            rows.append(row)
            position = row.position
            size += _size(row.value)
            if size >= CHUNK_BYTES or len(rows) == CHUNK_ROWS:
                yield Chunk(first, rows, read + position)
                first, rows, size = first + len(rows), [], 0
        read += path.stat().st_size
    if rows:
        yield Chunk(first, rows, read)


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
    """

    corpus: Corpus
    dtype: type[np.generic]
    build_tokenizer: Callable[[], Tokenizer]
    keep_text: bool = False
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
            position=chunk.position,
            fingerprint=None if self.keep_text else self._tokenizer.fingerprint,
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
        OSError: a process died.
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
        raise OSError("a tokenizing process died (out of memory?): run again, with fewer processes") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------------------------ places


def store_places(corpus: Corpus, *, cache_dir: str | Path | None, fingerprint: str | None) -> list[Path]:
    """List the prefixes under which the store of a corpus may lie, the preferred one first.

    The name holds a hash of everything that changes what is in the store. Beside the source it does not depend on where
    the source lies, so that a folder can be moved with its stores.
    """
    beside = _folder_of(corpus.location)
    key = {
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
    stem = re.sub(r"[^\w.-]+", "_", Path(corpus.location).name).strip("_") or "all"
    absolute = os.path.abspath(corpus.location)

    def place(folder: Path, location: str) -> Path:
        text = json.dumps({**key, "location": location}, sort_keys=True)
        return folder / f"{stem}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:10]}"

    if cache_dir is not None:
        return [place(Path(cache_dir), absolute)]
    first, fallback = cache_folders(beside)
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


def _source_list(prefix: Path, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe the source files as they are now; their paths are relative to the store's folder."""
    return [
        {"file": os.path.relpath(path, prefix.parent), "size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
        for path in files
    ]


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
