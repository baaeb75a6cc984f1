"""Tokenizing the quickstart's prose: WordPiece and byte-level BPE on one core, and over two processes.

    GLM_VOCAB_DIR=... python -m benchmarks.tokenize [--json]

The baseline is the rate recorded for the original on one core of another machine. That the ids are the original's is
what tests/data_utils/test_golden_tokenizers.py shows. Two processes are compared with one, on the prose many times
over, from the moment on when both of them are busy (a real corpus takes long enough for their start not to matter); a
ratio of 2 is linear.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.corpus import prose
from benchmarks.measuring import Row, compare, report, summarize
from data_utils.corpora.named import find_corpus
from data_utils.corpora.preparation import CHUNKS_PER_PROCESS, ChunkTokenizer, read_chunks, tokenize_chunks
from data_utils.errors import run_main
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

FAMILIES = {
    "WordPiece": ("BertWordPieceTokenizer", "bert-base-uncased", 330_000, 3.0),
    "GPT-2 BPE": ("GPT2BPETokenizer", "gpt2", 500_000, 2.0),
}
PROCESSES, COPIES, REPEATS = 2, 24, 3


def measure() -> Sequence[Row]:
    """Return a row per family, and one for two processes."""
    texts = prose()
    rows = []
    for name, (kind, model_type, recorded_rate, goal) in FAMILIES.items():
        tokenizer: Tokenizer = build_tokenizer(kind, model_type=model_type)
        num_tokens = sum(map(len, tokenizer.encode_batch(texts)))
        rows.append(
            compare(
                f"tokenizing, {name}",
                partial(tokenizer.encode_batch, texts),
                repeats=3,
                amount=num_tokens,
                unit="tokens/s",
                recorded_rate=recorded_rate,
                goal=goal,
            )
        )
    return [*rows, two_processes(texts)]


def two_processes(texts: Sequence[str]) -> Row:
    """Return the row of two processes against one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) * COPIES, encoding="utf-8")
        runs = [[tokenize_corpus(path, num_workers) for num_workers in (PROCESSES, 1)] for _ in range(REPEATS)]
    (together, alone), *_ = runs
    name, own, other = f"tokenizing, WordPiece, {PROCESSES} processes against 1", *zip(*runs, strict=True)
    amount = together[1]
    return summarize(
        name,
        [seconds for seconds, *_ in own],
        [seconds for seconds, *_ in other],
        amount=amount,
        unit="tokens/s",
        equal=np.array_equal(together[2], alone[2]),
        goal=PROCESSES,
    )


def tokenize_corpus(path: Path, num_workers: int) -> tuple[float, int, np.ndarray]:
    """Return the seconds for all but the first chunks, the tokens of those, and the ids of the whole corpus."""
    kind, model_type, *_ = FAMILIES["WordPiece"]
    corpus = find_corpus(str(path))
    tokenizer = ChunkTokenizer(corpus, np.int32, partial(build_tokenizer, kind, model_type=model_type))
    chunks = tokenize_chunks(read_chunks(corpus, [path]), tokenizer, num_workers=num_workers)
    ids = [chunk.tokens for chunk in islice(chunks, CHUNKS_PER_PROCESS * PROCESSES)]
    before = len(ids)
    start = time.perf_counter()
    ids += [chunk.tokens for chunk in chunks]
    seconds = time.perf_counter() - start
    return seconds, sum(map(len, ids[before:])), np.concatenate(ids)


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
