"""Read the golden vectors of the NLU tasks: raw files, cases and the tokenizers they were recorded with."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer
from tests.helpers.golden_index import GoldenFolder

TOKENIZERS: dict[str, dict[str, Any]] = {
    "bert": {"tokenizer_type": "BertWordPieceTokenizer", "model_type": "bert-base-uncased"},
    "gpt2": {"tokenizer_type": "GPT2BPETokenizer"},
    "roberta": {"tokenizer_type": "GPT2BPETokenizer", "model_type": "roberta"},
    "chinese": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": False},
}


def load(golden: GoldenFolder, name: str) -> Any:
    """Return the content of ``superglue/NAME``, gzip-compressed or not; skip where it is not there."""
    path = golden.path(f"superglue/{name}")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(content.decode("utf-8"))


def raw_folder(golden: GoldenFolder) -> Path:
    """Return the folder of the made-up task files."""
    return golden.path("superglue/raw")


@cache
def recorded_tokenizer(name: str, vocab_dir: Path, *, task_mask: bool = False, num_sentinels: int = 0) -> Tokenizer:
    """Return the tokenizer that a case names."""
    return build_tokenizer(**TOKENIZERS[name], task_mask=task_mask, num_sentinels=num_sentinels, vocab_dir=vocab_dir)
