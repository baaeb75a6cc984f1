"""Tokenize the rows of a corpus in chunks, in several processes, in order.

The reader of the files hands out numbered chunks of raw rows; processes parse, tokenize and return arrays; results are
taken in the order of the chunks and only a few are under way at a time. So memory does not grow with the corpus, and
the result does not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.corpora.files import Row
from data_utils.corpora.named import Corpus, TextDocument

if TYPE_CHECKING:
    from data_utils.tokenizers.tokenizer import Tokenizer

CHUNK_BYTES = 1 << 20  # of raw rows
CHUNK_ROWS = 2048
CHUNKS_PER_PROCESS = 3  # under way at a time


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
        group_tokens: tokens per part of the corpus.
        position: bytes of the files read so far.
        fingerprint: of the tokenizer that made the ids.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    predicted: np.ndarray | None
    num_rows: int
    malformed: list[str]
    group_tokens: Mapping[str, int]
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
        build_tokenizer: makes the tokenizer when the first chunk comes; None keeps text as UTF-8 bytes. It has to be
            picklable for use in other processes.
    """

    corpus: Corpus
    dtype: type[np.generic]
    build_tokenizer: Callable[[], Tokenizer] | None
    _tokenizer: Tokenizer | None = field(default=None, init=False, repr=False)

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        """Parse and tokenize one chunk."""
        documents: list[TextDocument] = []
        malformed: list[str] = []
        for number, row in enumerate(chunk.rows, start=chunk.first_row):
            try:
                documents += self.corpus.parse(row, number)
            except ValueError as error:
                malformed.append(str(error))
        if self._tokenizer is None and self.build_tokenizer is not None:
            self._tokenizer = self.build_tokenizer()
        texts = [piece for document in documents for piece in document.pieces if piece]
        encoded = iter(self._encode(texts))
        eop = None if self._tokenizer is None else [self._tokenizer.command_id("eop")]
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
            num_rows=len(chunk.rows),
            malformed=malformed,
            group_tokens={group: count for group, count in groups.items() if group},
            position=chunk.position,
            fingerprint=None if self._tokenizer is None else self._tokenizer.fingerprint,
        )

    def _encode(self, texts: list[str]) -> Sequence[Sequence[int]]:
        if self._tokenizer is None:
            return [text.encode("utf-8") for text in texts]
        return self._tokenizer.encode_batch([self.corpus.for_tokens(text) for text in texts]) if texts else []


def _alternate(runs: Sequence[int]) -> np.ndarray:
    """Return runs of zeros and ones in turn, uint8; every document has an even number of runs."""
    return np.repeat(np.arange(len(runs), dtype=np.int64) % 2, runs).astype(np.uint8)


_chunk_tokenizer: ChunkTokenizer | None = None  # of this worker process


def _start_worker(chunk_tokenizer: ChunkTokenizer) -> None:
    global _chunk_tokenizer  # noqa: PLW0603 - a worker process serves one corpus
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per process
    _chunk_tokenizer = chunk_tokenizer


def _work(chunk: Chunk) -> TokenizedChunk:
    assert _chunk_tokenizer is not None
    return _chunk_tokenizer(chunk)


def tokenize_chunks(
    chunks: Iterable[Chunk], chunk_tokenizer: ChunkTokenizer, *, num_workers: int
) -> Iterator[TokenizedChunk]:
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
    import multiprocessing
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
