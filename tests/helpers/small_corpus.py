"""A tiny made-up corpus with a tokenizer trained on it, made-up examples of a task, and the flags of runs on both."""

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


# A model and a task of runs of finetune_glm.py.
TASK_FLAGS = (
    "--task", "rte", "--data-dir", "data", "--cloze-eval", "--block-lm", "--num-layers", "2", "--hidden-size", "32",
    "--num-attention-heads", "2", "--max-position-embeddings", "64", "--seq-length", "64", "--tokenizer-type",
    "SentencePieceTokenizer", "--batch-size", "4", "--lr", "1e-3", "--device", "cpu", "--log-interval", "1",
    "--hidden-dropout", "0", "--attention-dropout", "0", "--multi-token", "--no-progress",
)  # fmt: skip


def task_flags(corpus: SmallCorpus, *more: str) -> list[str]:
    """Return the flags of a fine-tuning run on the examples in ``data/``."""
    return [*TASK_FLAGS, "--tokenizer-path", str(corpus.folder / "tokenizer.model"), *more]


def write_entailment_split(folder: Path, name: str, count: int, *, labels: bool = True) -> None:
    """Write made-up entailment examples: a premise entails what it begins with."""
    words = ["the", "dog", "runs", "a", "bird", "sings", "river", "walks"]
    lines = []
    for number in range(count):
        premise = " ".join(words[(number + step) % len(words)] for step in range(5))
        entailed = number % 2 == 0
        row = {"premise": premise, "hypothesis": premise[:8] if entailed else "it rains", "idx": number}
        if labels:
            row["label"] = "entailment" if entailed else "not_entailment"
        lines.append(json.dumps(row))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
