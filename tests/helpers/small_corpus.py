"""A tiny made-up corpus with a tokenizer trained on it, for end-to-end tests."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

# fmt: off
WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
]
# fmt: on


@dataclass(frozen=True)
class SmallCorpus:
    """A folder with a training and a validation file and a trained tokenizer."""

    folder: Path

    def words(self) -> list[str]:
        """Return the flags every run here shares."""
        return [
            "--block-lm", "--task-mask", "--bert-prob", "0.4", "--gap-sentence-prob", "0.3", "--gpt-min-ratio", "0.25",
            "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2",
            "--seq-length", "48", "--max-position-embeddings", "64", "--device", "cpu",
            "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-path", str(self.folder / "tokenizer.model"),
            "--train-data", str(self.folder / "train.jsonl"), "--valid-data", str(self.folder / "valid.jsonl"),
            "--batch-size", "4", "--lr", "0.01", "--warmup", "0.1", "--lr-decay-style", "cosine",
            "--log-interval", "2", "--eval-interval", "6", "--eval-iters", "4", "--num-workers", "0",
        ]  # fmt: skip


def make_corpus(folder: Path) -> SmallCorpus:
    """Write 60 training and 10 validation documents and train a SentencePiece model of 80 pieces."""
    import sentencepiece

    generator = random.Random(3)

    def document() -> str:
        sentences = (" ".join(generator.choices(WORDS, k=generator.randint(4, 9))) for _ in range(12))
        return " ".join(sentence.capitalize() + "." for sentence in sentences)

    for name, count in (("train", 60), ("valid", 10)):
        lines = (json.dumps({"text": document()}) + "\n" for _ in range(count))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(document() for _ in range(100)),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=80,
        minloglevel=2,
    )
    return SmallCorpus(folder)
