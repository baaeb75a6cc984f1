"""The tokenizers that the golden vectors were recorded with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from data_utils.tokenizers.tokenizer import Tokenizer, build_tokenizer

TOKENIZERS: dict[str, dict[str, Any]] = {
    "bert": {"tokenizer_type": "BertWordPieceTokenizer", "model_type": "bert-base-uncased"},
    "gpt2": {"tokenizer_type": "GPT2BPETokenizer"},
    "roberta": {"tokenizer_type": "GPT2BPETokenizer", "model_type": "roberta"},
    "chinese": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": False},
    "chinese_fixed": {"tokenizer_type": "ChineseSPTokenizer", "fix_command_token": True},
}
FLAGS = {"--block-lm": "block_symbols", "--task-mask": "task_mask"}


@cache
def recorded_tokenizer(name: str, vocab_dir: Path, **options: Any) -> Tokenizer:
    """Return the tokenizer that a case names, with further options of ``build_tokenizer``."""
    return build_tokenizer(**TOKENIZERS[name], **options, vocab_dir=vocab_dir)


def options_of(flags: Iterable[str]) -> dict[str, bool]:
    """Return the options of a recorded command line; an unknown flag is an error."""
    assert set(flags) <= set(FLAGS), flags
    return {option: flag in flags for flag, option in FLAGS.items()}
