"""What happens on the CPU before a model: packing, blanks, tokenizing, and the start of the programs.

Baselines are the rates recorded for the original on one core of another machine; that the results are the original's
bit for bit is what the golden tests of tests/data_utils show.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - see collator

from benchmarks.harness import (
    REPOSITORY,
    RandomDocuments,
    Row,
    compare,
    prose,
    random_vocabulary,
    summarize,
)
from data_utils.corpora.named import find_corpus
from data_utils.corpora.tokenization import CHUNKS_PER_PROCESS, ChunkTokenizer, read_chunks, tokenize_chunks
from data_utils.objective.block_infilling import BlankInfillingCollator, BlankInfillingSettings
from data_utils.objective.packing import BlockDataset
from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

SEQ_LENGTH, BATCH, BATCHES, PACKED = 512, 16, 100, 4000
MIXES = {
    "spans only": BlankInfillingSettings(bert_prob=1.0),
    "three objectives": BlankInfillingSettings(bert_prob=0.5, gap_sentence_prob=0.3, task_mask=True),
}
FAMILIES = {  # recorded rate, goal
    "WordPiece": ("BertWordPieceTokenizer", "bert-base-uncased", 330_000, 3.0),
    "GPT-2 BPE": ("GPT2BPETokenizer", "gpt2", 500_000, 2.0),
}
PROCESSES, COPIES, REPEATS = 2, 24, 3
PROGRAMS = ("pretrain_glm.py", "finetune_glm.py", "generate_samples.py", "change_mp.py")


def collator() -> list[Row]:
    """Blank construction on one core: sequences of 512 tokens, batches of 16.

    torch is imported, as it is in every process that builds batches: its import frees large blocks, and from then on
    glibc keeps what is freed. In a process that has never freed any, 40 % of the time goes into asking the kernel for
    the memory of each batch again.
    """
    vocabulary = random_vocabulary()
    data = BlockDataset(RandomDocuments(500), tokenizer=vocabulary, seq_length=SEQ_LENGTH)
    batches = [[data[index * BATCH + row] for row in range(BATCH)] for index in range(BATCHES)]
    rows = []
    for name, settings in MIXES.items():
        collator = BlankInfillingCollator(vocabulary, settings, max_seq_length=SEQ_LENGTH)

        def work(collator: BlankInfillingCollator = collator) -> None:
            for index, samples in enumerate(batches):
                collator(samples, batch_index=index)

        rows.append(
            compare(
                f"blank construction, {name}",
                work,
                amount=BATCHES * BATCH,
                unit="samples/s",
                recorded_rate=1600,
                goal=10.0,
            )
        )
    return rows


def packing() -> list[Row]:
    """Packing documents into samples of 512 tokens, on one core."""
    data = BlockDataset(RandomDocuments(500), tokenizer=random_vocabulary(), seq_length=SEQ_LENGTH)

    def work() -> None:
        for index in range(PACKED):
            data[index]

    return [
        compare("packing", work, amount=PACKED, unit="samples/s", recorded_rate=5000, goal=10.0),
    ]


def tokenize() -> list[Row]:
    """Tokenizing the quickstart's prose: WordPiece and byte-level BPE on one core, and over two processes.

    Needs GLM_VOCAB_DIR. Two processes are compared with one, on the prose many times over, from the moment on when both
    of them are busy (a real corpus takes long enough for their start not to matter); a ratio of 2 is linear.
    """
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
    name, ours, baseline = f"tokenizing, WordPiece, {PROCESSES} processes against 1", *zip(*runs, strict=True)
    amount = together[1]
    return summarize(
        name,
        [seconds for seconds, *_ in ours],
        [seconds for seconds, *_ in baseline],
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
    chunks = tokenize_chunks(read_chunks(corpus, corpus.pieces([path])), tokenizer, num_workers=num_workers)
    ids = [chunk.tokens for chunk in islice(chunks, CHUNKS_PER_PROCESS * PROCESSES)]
    before = len(ids)
    start = time.perf_counter()
    ids += [chunk.tokens for chunk in chunks]
    seconds = time.perf_counter() - start
    return seconds, sum(map(len, ids[before:])), np.concatenate(ids)


def startup() -> list[Row]:
    """How long the programs take to answer --help.

    There is no baseline: the original imports torch first, and does not import today.
    """

    def start(program: str) -> None:
        subprocess.run([sys.executable, program, "--help"], cwd=REPOSITORY, check=True, capture_output=True)

    return [compare(f"{program} --help", partial(start, program)) for program in PROGRAMS]
