"""A tokenizer of bytes and stores that it makes, in this process or, slowly, in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial

import data_utils.corpora.tokenization
from files.errors import start_logging
from tests.helpers import REPOSITORY


class ByteTokenizer:
    """Its ids are UTF-8 bytes plus an offset; every file it works for says so in a log."""

    num_tokens = 300
    command_tokens = ()

    def __init__(self, offset: int = 1, *, log: str | None = None, seconds: float = 0.0):
        self.offset = offset
        self.fingerprint = f"bytes+{offset}"
        self.log = log
        self.seconds = seconds

    def count_commands(self, texts):
        return {}

    def encode(self, text, *, as_text=False):
        return [byte + self.offset for byte in text.encode()]

    def encode_batch(self, texts, *, as_text=False):
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {len(texts)}\n")
        time.sleep(self.seconds)
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return bytes(int(i) - self.offset for i in ids).decode()

    def command_id(self, name):
        return {"eos": 298, "eop": 299}[name]


def prepare(*sources, tokenizer=None, build=None, **options):
    """Prepare documents silently; ``build`` makes the tokenizer of other processes."""
    tokenizer = tokenizer or ByteTokenizer()
    options = {"progress": False, **options}
    build = build or partial(ByteTokenizer, tokenizer.offset, log=tokenizer.log, seconds=tokenizer.seconds)
    preparation = data_utils.corpora.tokenization.Preparation(tokenizer, build, **options)
    return preparation.documents([str(source) for source in sources])


def make_slowly(*arguments: object) -> subprocess.Popen[str]:
    """Start a process that makes a store of ``(corpus, seconds for each chunk, log, cache folder[, workers])``."""
    words = [sys.executable, "-m", __name__, *map(str, arguments)]
    return subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def main(corpus: str, seconds: str, log: str, cache_dir: str, num_workers: str = "0") -> None:
    start_logging()
    data_utils.corpora.tokenization.CHUNK_ROWS = 30
    data_utils.corpora.tokenization.MINIMUM_PARALLEL_BYTES = 0
    tokenizer = ByteTokenizer(log=log, seconds=float(seconds))
    prepare(corpus, tokenizer=tokenizer, cache_dir=cache_dir, num_workers=int(num_workers))


if __name__ == "__main__":
    main(*sys.argv[1:])
