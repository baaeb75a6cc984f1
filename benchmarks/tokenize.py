"""Tokenizing the quickstart's prose: WordPiece and byte-level BPE on one core, and over two processes.

    GLM_VOCAB_DIR=... python -m benchmarks.tokenize [--json]

The baseline is the rate recorded for the original on one core of another machine. That the ids are the original's is
what tests/test_golden_generation_tokenizers.py shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.corpus import prose
from benchmarks.measuring import Row, compare, report
from data_utils.errors import run_main
from data_utils.tokenization import Tokenizer, build_tokenizer

FAMILIES = {
    "WordPiece": ("BertWordPieceTokenizer", "bert-base-uncased", 330_000, 3.0),
    "GPT-2 BPE": ("GPT2BPETokenizer", "gpt2", 500_000, 2.0),
}


def measure() -> Sequence[Row]:
    """Return a row per family."""
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
    return rows


if __name__ == "__main__":
    run_main(lambda: report(measure, description=__doc__))
