"""Text for the benchmarks of the data side: the quickstart's prose, and random documents that need no vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from data_utils.corpora.store import Document
from data_utils.tokenizers.tokenizer import Tokenizer, word_list_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = {"pad": 0, "eos": 0, "ENC": 1, "MASK": 2, "sMASK": 3, "gMASK": 4, "sop": 5, "eop": 6, "sep": 8}
SENTENCE_END = 7
VOCABULARY = 30000


def random_vocabulary() -> Tokenizer:
    """Return a tokenizer of numbered words with a few commands, and one word that ends sentences."""
    words = ["." if index == SENTENCE_END else f"w{index}" for index in range(VOCABULARY)]
    return word_list_tokenizer(words, COMMANDS)


class RandomDocuments:
    """Documents of 20 to ``longest`` random tokens with a sentence end every twenty or so."""

    def __init__(self, count: int, *, longest: int = 600, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(20, longest, count)
        self._documents = [generator.integers(SENTENCE_END + 1, VOCABULARY, length) for length in self.lengths]
        for tokens in self._documents:
            tokens[generator.random(len(tokens)) < 0.05] = SENTENCE_END

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return Document(self._documents[index])


def prose() -> list[str]:
    """Return the documents of the quickstart's corpus."""
    with tempfile.TemporaryDirectory() as folder:
        script = REPOSITORY / "scripts" / "quickstart_corpus.py"
        subprocess.run([sys.executable, str(script), folder], check=True, capture_output=True, cwd=REPOSITORY)
        lines = (Path(folder) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]
