"""A tiny mT5 with random weights and the recorded tokenizer, in a folder as transformers writes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.helpers.golden_index import GoldenFolder


def tiny_mt5(folder: Path, golden: GoldenFolder, *, rows: int = 1024) -> Path:
    """Write the model and its tokenizer into ``folder`` and return it."""
    import torch
    from transformers import MT5Config, MT5ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(golden.path("multilingual/mt5_tiny.model"), folder / "spiece.model")
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=rows, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, dropout_rate=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    MT5ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}), encoding="utf-8"
    )
    return folder
