"""The table of bad inputs: each ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.small_corpus import SmallCorpus, make_corpus
from tests.helpers.small_models import random_model

pytestmark = pytest.mark.slow

SIZES = ["--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings", "64"]
SHARD = "mp_rank_00_model_states.pt"


class Malicious:
    """Pickles into a call that would create a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


@dataclass(frozen=True)
class Stage:
    """A folder with a small corpus, its tokenizer, and a checkpoint with random weights."""

    corpus: SmallCorpus
    folder: Path

    def checkpoint(self, name: str, *, vocab_size: int = 128) -> Path:
        folder = self.folder / name
        folder.mkdir()
        torch.save({"module": random_model(vocab_size=vocab_size).state_dict()}, folder / SHARD)
        return folder

    def file(self, name: str, content: str) -> str:
        path = self.folder / name
        path.write_text(content, encoding="utf-8")
        return str(path)

    def train(self, *words: str) -> list[str]:
        return ["pretrain_glm.py", *self.corpus.words(), "--train-iters", "1", "--no-progress", *words]

    def generate(self, checkpoint: Path, *words: str) -> list[str]:
        tokenizer = ["--tokenizer-type", "SentencePieceTokenizer"]
        tokenizer += ["--tokenizer-path", str(self.corpus.folder / "tokenizer.model")]
        load = ["--load-pretrained", str(checkpoint), "--device", "cpu"]
        return ["generate_samples.py", "--block-lm", "--task-mask", *SIZES, *tokenizer, *load, *words]


def truncated(stage: Stage) -> Path:
    folder = stage.checkpoint("truncated")
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: len(content) // 2])
    return folder


def malicious(stage: Stage) -> Path:
    folder = stage.folder / "malicious"
    folder.mkdir()
    torch.save({"module": Malicious(stage.folder / "witness")}, folder / SHARD)
    return folder


# What is wrong -> (command, words that the line has to hold).
Case = tuple[Callable[[Stage], list[str]], tuple[str, ...]]
CASES: dict[str, Case] = {
    "missing file": (lambda s: s.train("--train-data", "nowhere.jsonl"), ("nowhere.jsonl",)),
    "unknown corpus name": (lambda s: s.train("--train-data", "wikipeda"), ("wikipeda", "wikipedia")),
    "malformed JSON line": (
        lambda s: s.train("--train-data", s.file("bad.jsonl", '{"text": "a."}\n{"text": \n')),
        ("bad.jsonl", "2", "--skip-malformed"),
    ),
    "empty corpus": (lambda s: s.train("--train-data", s.file("empty.jsonl", "")), ("empty.jsonl",)),
    "no text under the key": (
        lambda s: s.train("--train-data", s.file("key.jsonl", json.dumps({"body": "a"}) + "\n")),
        ("key.jsonl", "text", "body"),
    ),
    "unknown flag": (lambda s: s.train("--train-iter-count", "3"), ("--train-iter-count",)),
    "resume from nowhere": (lambda s: s.train("--load", str(s.folder / "nowhere")), ("nowhere",)),
    "wrong vocabulary for a checkpoint": (
        lambda s: s.generate(s.checkpoint("other", vocab_size=256), "--prompt", "time [MASK]"),
        ("256", "128"),
    ),
    "truncated checkpoint": (lambda s: s.generate(truncated(s), "--prompt", "time [MASK]"), ("truncated",)),
    "pickle that would run code": (lambda s: s.generate(malicious(s), "--prompt", "time [MASK]"), ("malicious",)),
    "missing checkpoint": (lambda s: s.generate(s.folder / "nowhere", "--prompt", "time [MASK]"), ("nowhere",)),
    "prompt with a mask that is none": (
        lambda s: s.generate(s.checkpoint("model"), "--prompt", "no blank MASK] here"),
        ("[MASK]",),
    ),
    "over-long prompt": (
        lambda s: s.generate(s.checkpoint("model"), "--prompt", "time " * 200 + "[MASK]"),
        ("203", "65", "shorten"),
    ),
    "empty prompt file": (
        lambda s: s.generate(s.checkpoint("model"), "--input", s.file("prompts.txt", "\n")),
        ("prompts.txt",),
    ),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(name: str, corpus: SmallCorpus, tmp_path: Path, repository: Path):
    stage = Stage(corpus, tmp_path)
    make_command, words = CASES[name]
    program, *arguments = make_command(stage)
    command = [sys.executable, str(repository / program), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(repository), "GLM_CACHE_DIR": str(tmp_path / "cache")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr[-2000:]
    [line] = run.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert not [word for word in words if word not in line], line
    assert not (tmp_path / "witness").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".idx", ".tmp"}]
